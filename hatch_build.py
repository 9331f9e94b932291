"""Say so when a wheel is built without the web page, which hatchling would leave out in silence."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PAGE = "src/cotrunk/service/static/index.html"


class PageHook(BuildHookInterface[Any]):
    """Looks for the built page. An editable install serves it from the sources, whenever it is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Warn if the wheel will have no page."""
        if self.target_name == "wheel" and version != "editable" and not (Path(self.root) / PAGE).is_file():
            self.app.display_warning(
                "This wheel has no web page, because the page is not built: run `make page`, then build again. "
                "Without it, `cotrunk serve` has its API only."
            )
