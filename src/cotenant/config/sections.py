"""What the sections of `cotenant.yaml` are built of: the kinds of values, and what all sections share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from cotenant.config import scalars, service_scalars
from cotenant.config.scalars import Scalar
from cotenant.domain.errors import UsageError
from cotenant.domain.models import CacheType
from cotenant.domain.recipes import MAX_BATCH, MAX_CTX

CONFIG_ISSUE = "issue"
"""The type of pydantic's errors that carry our own words."""
MAX_MIB = 1 << 30
MAX_COUNT = 1_000_000


def wrong(what: str, hint: str) -> PydanticCustomError:
    """Return an error that carries what is wrong and what to do."""
    return PydanticCustomError(CONFIG_ISSUE, "{what}", {"what": what, "hint": hint})


@dataclass(frozen=True, slots=True, eq=False)
class As:
    """Has pydantic read a value as a Scalar does; equal to itself alone, since pydantic hashes it."""

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
Duration = Annotated[float, As(scalars.duration())]
Timeout = Annotated[float, As(scalars.duration(least=0.001))]
KeepAlive = Annotated[float, As(scalars.keep_alive())]
Mib = Annotated[int, As(scalars.whole(0, MAX_MIB))]
Count = Annotated[int, As(scalars.whole(0, MAX_COUNT))]
Ctx = Annotated[int, As(scalars.whole(1, MAX_CTX))]
Batch = Annotated[int, As(scalars.whole(1, MAX_BATCH))]
Cache = Annotated[CacheType, As(scalars.member(CacheType))]
Devices = Annotated[tuple[str, ...], As(scalars.words(everything="all"))]
Command = Annotated[tuple[str, ...], As(service_scalars.command(everything=""))]
ModelDevices = Annotated[tuple[str, ...], As(scalars.words(everything="auto"))]


class Section(BaseModel):
    """A mapping with known keys; one that is left empty counts as not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}
