"""What every section of `cotenant.yaml` has in common."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A mapping with known keys; a key without a value counts as not given."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = cls.fields_by_key()
        return {key: value for key, value in data.items() if value is not None or key not in known}

    @classmethod
    def fields_by_key(cls) -> dict[str, str]:
        """Return the names of the fields by their keys, as spelled in the file."""
        return {field.alias or name: name for name, field in cls.model_fields.items()}

    def value_of(self, key: str) -> Any:
        """Return the value of a key; None if it is not given or unknown."""
        return getattr(self, self.fields_by_key().get(key, ""), None)


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that a field of this type holds."""
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, Section):
            yield each


def optional(description: str, alias: str | None = None) -> Any:
    """Declare a setting that may be left out; `alias` is its key if that is not the field's name."""
    return Field(default=None, alias=alias, description=description)
