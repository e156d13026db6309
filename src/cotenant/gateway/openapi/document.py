"""The OpenAPI document of the operator's API: every route, with what it takes and answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import ModelSchema

from cotenant import __version__
from cotenant.domain import errors
from cotenant.domain.errors import CotenantError
from cotenant.gateway.http.problems import HTTP_PROBLEMS
from cotenant.gateway.openapi.operations import OPERATIONS, Operation
from cotenant.gateway.openapi.schema import ErrorResponse

_JSON: Final = "application/json"
_REF: Final = "#/components/schemas/{model}"
_EVERYWHERE: Final[tuple[type[CotenantError], ...]] = (
    errors.RequestTooLarge,
    errors.HeadersTooLarge,
    errors.ShuttingDown,
)
_OPEN: Final = ("/health", "/api/session")
_INTRODUCTION: Final = (
    "What operators ask and order. Faults are in OpenAI's envelope: `error.message` says what happened and "
    "what to do, `error.param` names the field at fault. Clients' own routes are OpenAI's, under /v1."
)


def document(routes: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """Describe the routes, methods by template. Raises KeyError for one that has no Operation."""
    operations = {
        (template, method): OPERATIONS[method, template]
        for template, methods in routes.items()
        for method in methods
    }
    schemas = _Schemas(operations.values())
    paths: dict[str, dict[str, Any]] = {}
    for (template, method), operation in operations.items():
        paths.setdefault(template, {})[method.lower()] = _operation(template, method, operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cotenant",
            "version": __version__,
            "description": _INTRODUCTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        # The empty one: a daemon without keys asks for none.
        "security": [{"bearer": []}, {"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def published_name(name: str) -> str:
    """Return the name of a type in the document, which does not change: clients are generated from it."""
    if name == "SavedConfigurationResponse":
        return "SavedTold"
    if name.endswith("Response"):
        return f"{name.removesuffix('Response')}Told"
    return f"Asked{name.removesuffix('Request')}" if name.endswith("Request") else name


class _PublishedNames(GenerateJsonSchema):
    def normalize_name(self, name: str) -> str:
        return super().normalize_name(published_name(name))

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        return {**found, "title": published_name(found["title"])} if "title" in found else found


class _Schemas:
    """JSON schemas of all types, the shared ones as components."""

    def __init__(self, operations: Collection[Operation]) -> None:
        told = {answer.type for operation in operations for answer in operation.answers if answer.type}
        asked = {operation.body for operation in operations if operation.body}
        inputs: list[Any] = [(kind, "serialization", TypeAdapter(kind)) for kind in (*told, ErrorResponse)]
        inputs += [(kind, "validation", TypeAdapter(kind)) for kind in asked]
        by_key, whole = TypeAdapter.json_schemas(
            sorted(inputs, key=_name), ref_template=_REF, schema_generator=_PublishedNames
        )
        self._by_type = {kind: schema for (kind, _), schema in by_key.items()}
        self.definitions: dict[str, Any] = whole.get("$defs", {})

    def of(self, kind: Any) -> Any:
        return self._by_type[kind]


def _name(entry: Any) -> str:
    return published_name(str(entry[0].__name__))


def _operation(template: str, method: str, operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _identifier(method, template),
        "tags": [_tag(template)],
        "responses": _responses(template, operation, schemas),
    }
    if operation.parameters:
        described["parameters"] = [parameter.as_json() for parameter in operation.parameters]
    if operation.body:
        content: dict[str, Any] = {"schema": schemas.of(operation.body)}
        if operation.body_examples:
            content["examples"] = {name: {"value": value} for name, value in operation.body_examples.items()}
        described["requestBody"] = {
            "required": operation.body_required,
            "content": {operation.body_content_type: content},
        }
    if template in _OPEN:
        described["security"] = []
    return described


def _responses(template: str, operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for answer in operation.answers:
        content: dict[str, Any] = {"schema": schemas.of(answer.type) if answer.type else {"type": "string"}}
        if answer.example is not None:
            content["examples"] = {"example": {"value": answer.example}}
        response = responses.setdefault(
            str(answer.status), {"description": answer.description, "content": {}}
        )
        response["content"][answer.content_type] = content
    faults: dict[int, list[str]] = {500: ["internal"]}
    kinds = [*_EVERYWHERE, *operation.faults]
    if template != "/health":
        kinds += [errors.Unauthorized, errors.ForeignPage, errors.UntrustedHost]
    for kind in kinds:
        faults.setdefault(HTTP_PROBLEMS[kind].status, []).append(kind.code)
    for status, codes in sorted(faults.items()):
        responses[str(status)] = {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(dict.fromkeys(codes))}",
            "content": {_JSON: {"schema": schemas.of(ErrorResponse)}},
        }
    return responses


def _identifier(method: str, template: str) -> str:
    words = template.replace("{name}", "one").replace(".", "_").replace("-", "_").strip("/").split("/")
    return "_".join((method.lower(), *words))


def _tag(template: str) -> str:
    if template.startswith("/api/system"):
        return "services"
    return "models" if template.startswith("/api") else "daemon"
