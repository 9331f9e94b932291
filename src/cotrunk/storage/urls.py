"""URLs of places, such as s3://bucket/run: distinguished from the paths of folders, and shown without passwords."""

import os
import re
from urllib.parse import unquote

DATABASE = "COTRUNK_DATABASE"  # the environment variable with the URL of the database
# a scheme such as s3:, perhaps after others (simplecache::s3:); one letter is a drive of Windows
SCHEME = r"([a-z][a-z0-9+.-]+::)*[a-z][a-z0-9+.-]+:"
URL = re.compile(f"{SCHEME}//", re.IGNORECASE)
LACKS_SLASH = re.compile(f"^({SCHEME})/(?!/)", re.IGNORECASE)
# A user with a password: up to the last @ before a slash, or up to the first @ if the password has slashes, as keys of
# S3 do. Digits before a slash are a port.
SECRET = re.compile(r"(?<=://)[^/:@]*:(?!\d+(?:/|$))(?:[^/]*@|[^@]*@)")


def is_url(place: str) -> bool:
    """Return whether this is a URL, and not the path of a folder."""
    return URL.match(place) is not None


def mended_url(path: str) -> str:
    """Return the URL of which a path is left, as `Path` turns s3://bucket into s3:/bucket; other text as it is."""
    return path if os.path.lexists(path.partition("/")[0]) else LACKS_SLASH.sub(r"\1//", path, count=1)


def shown_place(place: str) -> str:
    """Return a folder or URL for messages and logs: without the user and password of a URL."""
    return SECRET.sub("", place)


def without_secrets(text: str, place: str) -> str:
    """Return what a library says about a URL, without the user and password of that URL."""
    for found in SECRET.findall(place):
        password = found[:-1].partition(":")[2]
        text = text.replace(found, "")
        for secret in (password, unquote(password)):
            text = text.replace(secret, "***") if secret else text
    return text
