"""Parser of the address where a model that is a service of its own listens, and what it must not be."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from cotenant.config.issues import shown
from cotenant.config.scalars import scalar, text
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting
from cotenant.domain.models import ModelKind

_LOOPBACK: Final = "127.0.0.1"
_ADDRESS: Final = re.compile(r"(?:(?:([A-Za-z0-9.-]{1,253})|\[([0-9A-Fa-f:.]{2,45})\]):)?([0-9]{1,5})")
_ENGINES: Final = (EngineKind.COMMAND, EngineKind.REMOTE)

Fault = tuple[tuple[str | int, ...], str, str]
"""The key of the configuration, what is wrong there, and a hint."""


@scalar(type=["integer", "string"], examples=[8188, "0.0.0.0:8188"])
def listen(value: Any) -> Endpoint:
    """A port of loopback, or an address that is written out, `[::]:8188` in IPv6."""
    found = _ADDRESS.fullmatch(text.read(value))
    if found is None or not 1 <= int(found[3]) <= 65535:
        hint = "Write a port, such as 8188, or an address, such as 0.0.0.0:8188."
        raise BadSetting(f"{shown(value)} is no address to listen on", hint=hint)
    return Endpoint(found[1] or found[2] or _LOOPBACK, int(found[3]))


def listen_faults(models: Sequence[Any], server_port: int) -> Iterator[Fault]:
    """Yield what is wrong with `listen` of models' sections, by themselves and together."""
    owners: dict[int, int] = {}
    for number, model in enumerate(models):
        if model.listen is None:
            continue
        key, port = ("models", number, "listen"), model.listen.port
        if model.engine not in _ENGINES or model.kind is not ModelKind.ANY:
            what = "only a model of kind any, of engine command or remote, has a port of its own"
            yield key, what, "Write `kind: any`, or leave it out: the server's port serves all other models."
        if port == server_port:
            yield key, f"port {port} is the server's own", "Give each model a port of its own."
        elif port in owners:
            yield key, f"port {port} is taken by models[{owners[port]}]", "Give each model a port of its own."
        owners.setdefault(port, number)
