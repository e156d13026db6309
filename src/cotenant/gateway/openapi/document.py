"""The OpenAPI document of the operator's API: all routes, with their requests and responses."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DataclassSchema, ModelSchema

from cotenant import __version__
from cotenant.domain import errors
from cotenant.domain.errors import CotenantError
from cotenant.domain.exit_causes import Cause
from cotenant.domain.keys import KeyScope
from cotenant.gateway.http.problems import HTTP_PROBLEMS
from cotenant.gateway.http.routes import Route

_EVERYWHERE: Final[tuple[type[CotenantError], ...]] = (
    errors.RequestTooLarge,
    errors.HeadersTooLarge,
    errors.ShuttingDown,
)
_INTRODUCTION: Final = (
    "The API for operators. Errors are in OpenAI's form: `error.message` says what happened and what to do, "
    "`error.param` names the wrong field. The routes for clients are OpenAI's, under /v1. `security` has the "
    "scope that a key needs; a daemon without keys needs none."
)


class FaultResponse(BaseModel):
    """An error in OpenAI's form; `param` names the wrong field, `cause` is why an engine ended."""

    message: str
    type: str
    param: str | None
    code: str
    cause: Cause | None = None


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: FaultResponse


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Describe the routes."""
    schemas, components = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cotenant",
            "version": __version__,
            "description": _INTRODUCTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def published_name(name: str) -> str:
    """Return the name of a type in the document. It must not change: clients are generated from it."""
    if name == "SavedConfigurationResponse":
        return "SavedTold"
    if name.endswith("Response"):
        return f"{name.removesuffix('Response')}Told"
    return f"Asked{name.removesuffix('Request')}" if name.endswith("Request") else name


class _PublishedNames(GenerateJsonSchema):
    def normalize_name(self, name: str) -> str:
        return super().normalize_name(published_name(name))

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        return _retitled(super().model_schema(schema))

    def dataclass_schema(self, schema: DataclassSchema) -> JsonSchemaValue:
        return _retitled(super().dataclass_schema(schema))


def _retitled(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {**schema, "title": published_name(schema["title"])} if "title" in schema else schema


def _schemas(routes: Sequence[Route]) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """Return the JSON schemas by type, and the components that they share."""
    sent = {reply.type for route in routes for reply in (route.reply, *route.other_replies) if reply.type}
    received = {route.body.type for route in routes if route.body}
    inputs: list[Any] = [(kind, "serialization", TypeAdapter(kind)) for kind in (*sent, ErrorResponse)]
    inputs += [(kind, "validation", TypeAdapter(kind)) for kind in received]
    by_key, whole = TypeAdapter.json_schemas(
        sorted(inputs, key=lambda entry: published_name(str(entry[0].__name__))),
        ref_template="#/components/schemas/{model}",
        schema_generator=_PublishedNames,
    )
    return {kind: schema for (kind, _), schema in by_key.items()}, whole.get("$defs", {})


def _operation(route: Route, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    words = route.path.replace("{name}", "one").replace(".", "_").replace("-", "_").strip("/").split("/")
    others = "models" if route.path.startswith("/api") else "daemon"
    described: dict[str, Any] = {
        "summary": route.summary,
        "operationId": "_".join((route.method.lower(), *words)),
        "tags": ["services" if route.path.startswith("/api/system") else others],
        "responses": _responses(route, schemas),
    }
    if route.parameters:
        described["parameters"] = [parameter.as_json() for parameter in route.parameters]
    body = route.body
    if body:
        content: dict[str, Any] = {"schema": schemas[body.type]}
        if body.examples:
            content["examples"] = {name: {"value": value} for name, value in body.examples.items()}
        described["requestBody"] = {"required": body.required, "content": {body.content_type: content}}
    open_ = route.path in ("/health", "/api/session")
    needed = [route.scope.value]
    described["security"] = [] if open_ else [{"bearer": needed}, {"key": needed}, {}]
    return described


def _responses(route: Route, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for reply in (route.reply, *route.other_replies):
        content: dict[str, Any] = {"schema": schemas[reply.type] if reply.type else {"type": "string"}}
        if reply.example is not None:
            content["examples"] = {"example": {"value": reply.example().model_dump(mode="json")}}
        response = responses.setdefault(str(reply.status), {"description": reply.description, "content": {}})
        response["content"][reply.content_type] = content
    faults: dict[int, list[str]] = {500: ["internal"]}
    kinds = [*_EVERYWHERE, *route.errors]
    if route.path != "/health":
        kinds += [errors.Unauthorized, errors.TooManyAttempts, errors.ForeignPage, errors.UntrustedHost]
    if route.scope is not KeyScope.INFER:
        kinds.append(errors.Forbidden)
    for kind in kinds:
        faults.setdefault(HTTP_PROBLEMS[kind].status, []).append(kind.code)
    for status, codes in sorted(faults.items()):
        responses[str(status)] = {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(dict.fromkeys(codes))}",
            "content": {"application/json": {"schema": schemas[ErrorResponse]}},
        }
    return responses
