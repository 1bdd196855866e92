"""`/openapi.json` and `/docs`, from files of our own: nothing is loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api.deadline import NUMBER, SECONDS
from server.api.once import KEY, RESUME
from server.errors import NotFound

STATIC = Path(__file__).parent / "static"
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
REF = "#/components/schemas/{model}"
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'"
)
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


# Of a request for a search: name, meaning, schema.
HEADERS = (
    (
        "Idempotency-Key",
        "Requests with the same key and body are one search, and get the same reply.",
        {"type": "string", "pattern": f"^{KEY.pattern}$"},
    ),
    (
        RESUME,
        "Only take up the search that this Idempotency-Key began.",
        {"type": "string", "enum": ["true"]},
    ),
    (
        SECONDS,
        "How long the client still waits, whatever the body's budget is.",
        {"type": "string", "pattern": f"^{NUMBER.pattern}$"},
    ),
)


def searches(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI of a route that takes a `model` and searches."""
    parameters = [
        {"in": "header", "name": name, "required": False, "description": said, "schema": schema}
        for name, said, schema in HEADERS
    ]
    return {"parameters": parameters, **takes(model)}


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI of a route whose body is a `model`: we parse bodies, not FastAPI."""
    schema = {"$ref": REF.format(model=model.__name__)}
    error = {
        "description": "An error",
        "content": {"application/json": {"schema": {"$ref": REF.format(model="Error")}}},
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"default": error},
    }


def describe(app: FastAPI, *bodies: type[BaseModel]) -> None:
    """Let the application's OpenAPI hold the schemas of `bodies` too."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            spec = get_openapi(title=app.title, version=app.version, routes=app.routes)
            inputs: list[tuple[type[BaseModel], Literal["validation"]]] = [
                (model, "validation") for model in bodies
            ]
            _, definitions = models_json_schema(inputs, ref_template=REF)
            schemas = spec.setdefault("components", {}).setdefault("schemas", {})
            schemas |= definitions["$defs"] | {"Error": ERROR}
            app.openapi_schema = spec
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def routes(app: FastAPI) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/openapi.json")
    async def schema() -> Response:
        return JSONResponse(app.openapi())

    @router.get("/docs")
    async def page() -> Response:
        html = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="/docs/favicon-32x32.png",
        )
        html.headers["content-security-policy"] = POLICY
        return html

    @router.get("/docs/{name}")
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise NotFound(f"No such file: {name[:100]}", code="unknown_route")
        return FileResponse(STATIC / name, media_type=ASSETS[name])

    return router
