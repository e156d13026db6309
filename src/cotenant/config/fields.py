"""The declared settings of each section, and how each setting is parsed."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, get_origin

from cotenant.config import scalars
from cotenant.config.configuration import (
    AdvisorSettings,
    AlertSettings,
    DeviceSettings,
    ModelDefaults,
    ModelEntry,
    ServerSettings,
)
from cotenant.config.keys import instant
from cotenant.config.scalars import Scalar
from cotenant.config.values.copies import copies
from cotenant.config.values.listen import listen
from cotenant.config.values.nodes import NodesSettings, node, ray_address, tls
from cotenant.domain.errors import BadQuantity, BadSetting, UsageError
from cotenant.domain.keys import ApiKey
from cotenant.domain.models import Recipe
from cotenant.domain.settings import Setting, settings_of
from cotenant.domain.units import MIB, parse_duration
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.scheduling.policy import POLICIES

MAX_MIB: Final = 1 << 30
_OF_DEFAULTS: Final = "max_loaded"
"""The scheduler's setting that belongs to the section `defaults`."""


def recipe_settings() -> Iterator[Setting]:
    """Yield the settings that `defaults` and each model have in common."""
    yield from settings_of(Recipe)
    yield from (each for each in settings_of(ModelDefaults) if each.key != "profile")


SECTIONS: Final[Mapping[str, tuple[Setting, ...]]] = {
    "server": tuple(settings_of(ServerSettings)),
    "server.keys": tuple(settings_of(ApiKey)),
    "devices": (*settings_of(BudgetRules), *settings_of(DeviceSettings)),
    "defaults": (
        *recipe_settings(),
        *(each for each in settings_of(ModelDefaults) if each.key == "profile"),
        *(each for each in settings_of(SchedulerSettings) if each.name == _OF_DEFAULTS),
    ),
    "scheduling": tuple(each for each in settings_of(SchedulerSettings) if each.name != _OF_DEFAULTS),
    "alerts": tuple(settings_of(AlertSettings)),
    "advisor": tuple(settings_of(AdvisorSettings)),
    "nodes": tuple(settings_of(NodesSettings)),
    "models": (*recipe_settings(), *settings_of(ModelEntry)),
}
"""The settings of each section of `cotenant.yaml`, except those that `schema` declares itself."""


_HEARTBEAT_S: Final = 1.0
"""How often agents are asked whether they are there: less than that is no silence."""
_READERS: Final[Mapping[str, Scalar]] = {
    "api_key": scalars.api_key,
    "copies": copies,
    "device": scalars.Scalar(scalars.text.read, {"type": ["string", "integer"]}),
    "devices": scalars.words(everything="all"),
    "duration": scalars.duration(),
    "expert_blocks": scalars.expert_blocks,
    "instant": instant,
    "keep_alive": scalars.keep_alive,
    "layers": scalars.layers,
    "listen": listen,
    "mib": scalars.whole(0, MAX_MIB),
    "mib_or_none": scalars.mib_or_none(MAX_MIB),
    "model_devices": scalars.words(everything="auto"),
    "name": scalars.name,
    "node": node,
    "node_tls": tls,
    "origin": scalars.origin,
    "percent": scalars.percent,
    "policy": scalars.one_of(POLICIES),
    "ray_address": ray_address,
    "share": scalars.share,
    "suspect_after": scalars.duration(least=_HEARTBEAT_S),
    "tensor_split": scalars.tensor_split,
    "timeout": scalars.duration(least=0.001),
    "web_address": scalars.web_address,
}
_IN_MIB: Final = frozenset(["mib", "mib_or_none"])
_WHOLE_LISTS: Final = frozenset(["devices", "model_devices", "tensor_split"])
"""Readers that take a whole list, where others take one of its items."""


def is_list(setting: Setting) -> bool:
    """Whether the setting is a list whose items `scalar_of` reads one by one."""
    return get_origin(setting.type) is tuple and setting.reads not in _WHOLE_LISTS


def scalar_of(setting: Setting) -> Scalar:
    """Return how a setting's value, or one item of its list, is read."""
    if setting.reads:
        return _READERS[setting.reads]
    if setting.type is bool:
        return scalars.switch
    if setting.type is int:
        return scalars.whole(setting.least, setting.most)
    if setting.type is Path:
        return scalars.path
    if isinstance(setting.type, type) and issubclass(setting.type, StrEnum):
        return scalars.member(setting.type)
    return scalars.text


def key_rights(given: Mapping[str, Any], now: float, where: Callable[[Setting], str]) -> dict[str, Any]:
    """Return the rights of an API key by field, of texts or values by their keys in the file.

    A time may also be a duration from `now`. None is not given. Raises BadSetting, which says `where`.
    """
    found: dict[str, Any] = {}
    for each in settings_of(ApiKey):
        value = given.get(each.key)
        if value is None:
            continue
        read = scalar_of(each).read
        try:
            if each.key == "expires" and (left_s := _duration(value)) is not None:
                found[each.name] = now + left_s
            elif is_list(each):
                found[each.name] = tuple(map(read, value.split(",") if isinstance(value, str) else value))
            else:
                found[each.name] = read(value)
        except UsageError as error:
            raise BadSetting(f"{where(each)}: {error.message}", hint=error.hint) from None
    return found


def _duration(value: Any) -> float | None:
    with suppress(BadQuantity):
        return parse_duration(value) if isinstance(value, str) else None
    return None


def in_units_of_field(setting: Setting, value: Any) -> Any:
    """Convert a value of the file to the unit of its field: MiB to bytes, infinity to None."""
    if value == math.inf:
        return None
    if setting.reads in _IN_MIB:
        return int(value) * MIB
    return tuple(value) if isinstance(value, list) else value


def in_units_of_file(setting: Setting, value: Any) -> Any:
    """Convert a field's value to the unit of the file and flags: bytes to MiB."""
    return value // MIB if setting.reads in _IN_MIB and value is not None else value


def values_of(section: Any, owner: type) -> dict[str, Any]:
    """Return the values in a section of the file, by the field names of `owner`."""
    values = ((each, getattr(section, each.name, None)) for each in settings_of(owner))
    return {each.name: in_units_of_field(each, value) for each, value in values if value is not None}
