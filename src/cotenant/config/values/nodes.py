"""The section `nodes`: other machines whose GPUs are used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from cotenant.config import scalars
from cotenant.config.issues import shown
from cotenant.config.scalars import scalar
from cotenant.domain.errors import BadSetting
from cotenant.domain.settings import setting

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")


@scalar(type="string", examples=["b"])
def node(value: Any) -> str:
    """The name of a machine or a fleet: a host name, in small letters; digits alone are an index of a GPU."""
    name = str(scalars.text.read(value)).lower()
    if not _NAME.fullmatch(name) or name.isdecimal():
        hint = "Write a host name, such as gpu-box-2: letters, digits, dots and dashes, not digits alone."
        raise BadSetting(f"{shown(value)} is not the name of a machine", hint=hint)
    return name


@scalar(type="string", examples=["auto", "10.0.0.1:6379"])
def ray_address(value: Any) -> str:
    """`auto`, or the host and port of Ray's head."""
    text = str(scalars.text.read(value))
    if text != "auto" and not _ADDRESS.fullmatch(text):
        hint = "Write auto, or HOST:PORT as `ray start --head` prints it, such as 10.0.0.1:6379."
        raise BadSetting(f"{shown(value)} is not an address of Ray", hint=hint)
    return text


@dataclass(frozen=True, slots=True)
class NodeTls:
    """TLS to the agents' gates: `ca` is on the daemon's machine, `cert` and `key` are on each other one."""

    ca: Path
    cert: Path
    key: Path


_TLS_KEYS: Final = ("ca", "cert", "key")


@scalar(
    type="object",
    properties={key: {"type": "string"} for key in _TLS_KEYS},
    required=[*_TLS_KEYS],
    additionalProperties=False,
)
def tls(value: Any) -> NodeTls:
    """The files of NodeTls, as they are written."""
    hint = "Write it as {ca: ca.pem, cert: /etc/node.pem, key: /etc/node.key}."
    if not isinstance(value, Mapping):
        raise BadSetting(f"{shown(value)} has no certificates", hint=hint)
    if unknown := sorted(map(str, value.keys() - {*_TLS_KEYS})):
        raise BadSetting(f"{shown(unknown[0])} is no key of tls", hint=hint)
    if missing := [key for key in _TLS_KEYS if not value.get(key)]:
        raise BadSetting(f"tls has no {missing[0]}", hint=hint)
    return NodeTls(*(Path(scalars.path.read(value[key])) for key in _TLS_KEYS))


class NodeLauncher(StrEnum):
    """What knows the machines, and starts an agent on each."""

    RAY = "ray"


class NodePull(StrEnum):
    """From where a machine fetches a model's file that it lacks."""

    NEVER = "never"
    HUB = "hub"
    DAEMON = "daemon"


@dataclass(frozen=True, slots=True)
class NodesSettings:
    """Which machines are used, and what becomes of them while they do not answer.

    A node is suspect, and then lost, after so many seconds without an answer. Its engines end `lease_s` after
    the last word of a daemon. Agents let requests in at `gate_port`, 0 for any free one.
    """

    launcher: NodeLauncher = setting(
        NodeLauncher.RAY, "what knows the machines and starts an agent on each", flag=None
    )
    address: str = setting(
        "auto",
        "where Ray's head listens, as HOST:PORT; auto: the one of this machine",
        reads="ray_address",
        flag=None,
    )
    fleet: str = setting(
        "cotenant", "name of this daemon's machines, if several daemons use one Ray", flag=None, reads="node"
    )
    suspect_after_s: float = setting(
        3.0,
        "a machine silent for so long gets nothing new, and its models may be loaded elsewhere",
        key="suspect_after",
        flag=None,
        reads="suspect_after",
    )
    lost_after_s: float = setting(
        10.0,
        "one silent for so long counts as gone, until it answers again",
        key="lost_after",
        flag=None,
        reads="timeout",
    )
    lease_s: float = setting(
        60.0,
        "how long engines of a machine go on without a word of a daemon; then they end",
        key="lease",
        flag=None,
        reads="timeout",
    )
    gate_port: int = setting(
        8082, "port of each machine through which requests reach its engines; 0: any", flag=None, most=65535
    )
    pull: NodePull = setting(
        NodePull.NEVER,
        "from where a machine fetches a file that it lacks: the hub, or the daemon's machine",
        flag=None,
    )
    tls: NodeTls | None = setting(
        None,
        "files of TLS between the daemon and the agents: `ca`, on the daemon's machine, `cert` and `key`, "
        "on each other one",
        flag=None,
        reads="node_tls",
    )
