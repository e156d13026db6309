"""Parser of the number of copies of a model."""

from collections.abc import Mapping
from typing import Any, Final

from cotenant.config.issues import shown
from cotenant.config.scalars import scalar, whole
from cotenant.domain.errors import BadSetting
from cotenant.domain.residencies import MAX_COPIES, Copies

_COPIES: Final = whole(1, MAX_COPIES)


@scalar(
    anyOf=[
        dict(_COPIES.json),
        {
            "type": "object",
            "properties": {"min": dict(_COPIES.json), "max": dict(_COPIES.json)},
            "required": ["max"],
            "additionalProperties": False,
        },
    ],
    examples=[2, {"min": 1, "max": 3}],
)
def copies(value: Any) -> Copies:
    """How many copies of a model: as many as a number says, or from `min` to `max` as there is need."""
    if not isinstance(value, Mapping):
        number = _COPIES.read(value)
        return Copies(number, number)
    if unknown := sorted(value.keys() - {"min", "max"}):
        raise BadSetting(f"{shown(unknown[0])} is no key of copies", hint="Write it as {min: 1, max: 3}.")
    if value.get("max") is None:
        raise BadSetting("copies has no max", hint="Write it as {min: 1, max: 3}.")
    least, most = (_COPIES.read(1 if value.get(key) is None else value[key]) for key in ("min", "max"))
    if least > most:
        raise BadSetting(f"min {least} is more than max {most}", hint="Write it as {min: 1, max: 3}.")
    return Copies(least, most)
