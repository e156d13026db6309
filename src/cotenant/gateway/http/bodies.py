"""JSON bodies, parsed and validated."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cotenant.domain.errors import BadAssignment, BadRequest


class RequestModel(BaseModel):
    """The body of a request: unknown fields are refused, and so is text in place of a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


class ResponseModel(BaseModel):
    """A part of a response; it may be read from the attributes of a domain value, some under another name."""

    model_config = ConfigDict(frozen=True, defer_build=True, from_attributes=True)


Body = TypeVar("Body", bound=RequestModel)


def whole_number(value: Any) -> Any:
    """Accept 3.0 as 3: JSON does not distinguish them, and JSON schema calls both an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_body(kind: type[Body], body: bytes) -> Body:
    """Parse and validate a body. Raises BadRequest, or BadAssignment that names the fields."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        raise BadRequest("the body is not JSON", hint="Send one JSON object in UTF-8.")
    raise BadAssignment.of(*map(_explain, faults[:1000]))  # a hostile body has millions


def _explain(fault: Any) -> BadAssignment:
    where, what = _dotted(fault["loc"]), str(fault["msg"])
    if fault["type"] == "missing":
        what = "it is missing"
    elif fault["type"] == "extra_forbidden":
        what = "it is not a known field"
    else:
        what = f"{what[:1].lower()}{what[1:]}"
        if isinstance(fault["input"], (str, int, float, bool, type(None))):
            what += f", not {str(fault['input'])[:60]!r}"
    whole = f"{where}: {what}" if where else what
    return BadAssignment(whole, hint="/openapi.json describes its fields.", field=where)


def _dotted(path: Sequence[str | int]) -> str:
    """Format the path of a field: `assignments[1].gpu_index`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
