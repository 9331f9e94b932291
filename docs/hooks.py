"""Pages of the site that are files of the repository: the README as its home, CONTRIBUTING and CHANGELOG.

On GitHub their links lead into the repository. On the site, links into `docs/` lead to its pages, and the others keep
their text alone.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ELSEWHERE = r"[^>]*=\"?(?:https?:)?//"
FETCHED = re.compile(rf"<(?:script|img|iframe){ELSEWHERE}|<link rel=\"(?:stylesheet|preconnect)\"{ELSEWHERE}")
ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's own pages."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_relinked(text, PurePosixPath(), PurePosixPath("docs"))))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page in `docs/` stay within the site."""
    if page.file.src_uri in PAGES.values():
        return markdown
    folder = PurePosixPath("docs", page.file.src_uri).parent
    return _relinked(markdown, folder, folder)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that makes its reader's browser fetch something from elsewhere."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} fetches from another host: {found[0]}")
    return output


def _relinked(text: str, folder: PurePosixPath, shown_in: PurePosixPath) -> str:
    """Replace the links of a file in `folder` by those of a page that is shown in `shown_in`."""

    def replaced(match: re.Match[str]) -> str:
        is_image, label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        path = normpath(str(folder / path))
        if path in PAGES:
            path = f"docs/{PAGES[path]}"
        if not path.startswith("docs/") or not path.endswith((".md", ".png", ".svg")):
            return label
        up = "../" * (len(shown_in.parts) - 1)
        return f"{is_image}[{label}]({up}{path.removeprefix('docs/')}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(replaced, text)
