"""The building blocks of the sections of `cotenant.yaml`: types of values, and the base class."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from cotenant.config import scalars, service_scalars
from cotenant.config.fields import MAX_MIB, is_list, scalar_of
from cotenant.config.scalars import Scalar
from cotenant.domain.errors import UsageError
from cotenant.domain.models import MAX_CTX
from cotenant.domain.settings import Setting

CONFIG_ISSUE = "issue"
"""The type of pydantic errors that contain our own message."""


def wrong(what: str, hint: str) -> PydanticCustomError:
    """Return an error with a message and a hint."""
    return PydanticCustomError(CONFIG_ISSUE, "{what}", {"what": what, "hint": hint})


@dataclass(frozen=True, slots=True, eq=False)
class As:
    """Makes pydantic parse a value with a Scalar. Compared by identity, since pydantic hashes it."""

    scalar: Scalar

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.scalar.json)

    def _read(self, value: Any) -> Any:
        try:
            return self.scalar.read(value)
        except UsageError as error:
            raise wrong(error.message, error.hint) from None


Text = Annotated[str, As(scalars.text())]
Name = Annotated[str, As(scalars.name())]
PathText = Annotated[str, As(scalars.path())]
ProjectorText = Annotated[str, As(scalars.path(absent="none"))]
Switch = Annotated[bool, As(scalars.switch())]
Timeout = Annotated[float, As(scalars.duration(least=0.001))]
Mib = Annotated[int, As(scalars.whole(0, MAX_MIB))]
Ctx = Annotated[int, As(scalars.whole(1, MAX_CTX))]
Command = Annotated[tuple[str, ...], As(service_scalars.command(everything=""))]
ModelDevices = Annotated[tuple[str, ...], As(scalars.words(everything="auto"))]


class Section(BaseModel):
    """A mapping with known keys; a key without a value counts as not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {key: value for key, value in data.items() if value is not None or key not in known}

    def value_of(self, key: str) -> Any:
        """Return the value of a key, as spelled in the file; None if it is not given or unknown."""
        fields = type(self).model_fields.items()
        return next((getattr(self, name) for name, field in fields if key == (field.alias or name)), None)


def section_of(settings: Iterable[Setting]) -> Any:
    """Return a section with an optional field for each setting; the alias of a field is its key."""
    declared: dict[str, Any] = {}
    for each in settings:
        item = Annotated[Any, As(scalar_of(each))]
        kind = list[item] if is_list(each) else item
        alias = each.key if each.key != each.name else None
        declared[each.name] = (kind | None, Field(default=None, alias=alias, description=each.text))
    return create_model("Section", __base__=Section, **declared)
