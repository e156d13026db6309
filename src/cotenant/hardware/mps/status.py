"""The MPS daemons of this machine: their servers, the clients of each, and the clients' limits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cotenant.domain.errors import MpsFailed
from cotenant.hardware.mps.control import MpsControl
from cotenant.hardware.mps.directories import (
    MEMORY_VARIABLE,
    MODEL_VARIABLE,
    THREADS_VARIABLE,
    MpsDirectories,
)
from cotenant.hardware.mps.discovery import find_daemons, orphans_of, variables_of


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """A process that computes through MPS. `model` is None for one that Cotenant did not start.

    `memory` and `threads` are its limits from its environment; None for no limit or another user's.
    """

    pid: int
    model: str | None
    memory: str | None
    threads: str | None


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The process that holds the cards for the clients of one user; `state` is as MPS names it."""

    pid: int
    state: str
    clients: tuple[ClientStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """A control daemon, or what one left behind: then `pid` is None and nothing answers.

    `cards` are UUIDs, None for every card; `problem` says what is wrong with it, if anything.
    """

    pipe: Path
    log: Path
    ours: bool
    pid: int | None
    running: bool
    cards: tuple[str, ...] | None
    servers: tuple[ServerStatus, ...] = ()
    problem: str | None = None


def daemon_statuses(program: Path, state_dir: Path, environ: Mapping[str, str]) -> Iterator[DaemonStatus]:
    """Yield the daemons that answer, then our directories without a daemon where something is left."""
    answering = set()
    for found in find_daemons(program, state_dir, environ):
        at = found.directories
        answering.add(at.pipe)
        servers, problem = _servers(found.control)
        yield DaemonStatus(
            at.pipe, at.log, at.ours, found.pid, True, found.cards, servers, found.problem or problem
        )
    for at in MpsDirectories.all_ours(state_dir):
        if at.pipe in answering:
            continue
        try:
            left = any(not path.is_dir() for path in at.pipe.iterdir())
        except OSError:
            left = False
        if left or any(True for _ in orphans_of(at.pipe)):
            problem = "no daemon answers here, and it left something: `cotenant mps stop` removes it"
            yield DaemonStatus(at.pipe, at.log, True, None, False, at.cards() or None, problem=problem)


def _servers(control: MpsControl) -> tuple[tuple[ServerStatus, ...], str | None]:
    try:
        return tuple(
            ServerStatus(server, control.server_status(server), tuple(map(_client, control.clients(server))))
            for server in control.servers()
        ), None
    except MpsFailed as error:
        return (), error.message


def _client(pid: int) -> ClientStatus:
    variables = variables_of(pid) or {}
    model, memory = variables.get(MODEL_VARIABLE), variables.get(MEMORY_VARIABLE)
    return ClientStatus(pid, model, memory, variables.get(THREADS_VARIABLE))
