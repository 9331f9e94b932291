"""An HTTP service that groups similar prompts while they wait. Needs the extra `serve`.

Two processes: the API process (`api/`) accepts, records and answers, and imports no torch. The worker process
(`worker/`) owns the device. They share the database (`store/`), and wake each other through a `channel`.
`shapes.py` describes the JSON that they leave for each other in the database, and `launch.py` what the worker is
started with.
"""

from importlib.util import find_spec

from ..errors import CotrunkError

if missing := [name for name in ("sqlalchemy", "fastapi", "uvicorn", "fsspec") if find_spec(name) is None]:
    raise CotrunkError(f"The service needs {missing[0]}: pip install 'cotrunk[serve]'.")
