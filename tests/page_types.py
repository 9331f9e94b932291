"""The schemas that the page is written for: `PYTHONPATH=tests python tests/page_types.py` writes them into its sources.

The build of the page makes its types from it (openapi-typescript), so what changes here is checked there.
"""

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from cotrunk.service.api.routes import jobs, models

FILE = Path(__file__).parents[1] / "page/src/api/openapi.json"


WORDS = ("description", "examples", "title")  # of a schema; a change of them changes no type


def shape(schema: Any) -> Any:
    """Return a schema without its words."""
    if isinstance(schema, list):
        return [shape(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: shape(value) for name, value in schema.items() if name not in (*WORDS, "properties")}
    if "properties" in schema:  # whose names may be such words
        kept["properties"] = {name: shape(value) for name, value in schema["properties"].items()}
    return kept


def schemas() -> str:
    """Return the schemas of jobs, plans and models, as an OpenAPI document without addresses."""
    app = FastAPI()
    for routes in (jobs, models):
        app.include_router(routes.router)
    found = {
        name: schema
        for name, schema in app.openapi()["components"]["schemas"].items()
        if name not in ("HTTPValidationError", "ValidationError")
    }
    found = {name: shape(schema) for name, schema in found.items()}
    info = {"title": "cotrunk", "version": "1"}
    document = {"openapi": "3.1.0", "info": info, "paths": {}, "components": {"schemas": found}}
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(schemas(), encoding="utf-8")
