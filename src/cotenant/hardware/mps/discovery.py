"""The MPS daemons of this machine, started by Cotenant or not: their processes, clients and limits."""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.domain.devices import Device
from cotenant.domain.errors import MpsError
from cotenant.hardware.mps.control import MpsControl
from cotenant.hardware.mps.directories import (
    MEMORY_VARIABLE,
    MODEL_VARIABLE,
    PIPE_VARIABLE,
    THREADS_VARIABLE,
    MpsDirectories,
)

_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class FoundDaemon:
    """A control daemon that answers.

    `cards` are the UUIDs, or their beginnings, that it was started with, None for every card. `problem` says
    why engines cannot use it, if so.
    """

    control: MpsControl
    pid: int | None
    cards: tuple[str, ...] | None
    problem: str | None = None

    @property
    def directories(self) -> MpsDirectories:
        """Where it listens and logs."""
        return self.control.directories

    def serves(self, device: Device) -> bool:
        """Whether its clients see a device."""
        if self.problem is not None:
            return False
        return self.cards is None or any(device.id.startswith(card) for card in self.cards)


def find_daemons(program: Path | None, state_dir: Path, environ: Mapping[str, str]) -> Iterator[FoundDaemon]:
    """Yield those in Cotenant's own directories, then the one that clients find by default.

    Asks each daemon, so do not call it in the thread of an event loop.
    """
    for directories in MpsDirectories.known(state_dir, environ):
        found = find_daemon(MpsControl(program, directories))
        if found is not None:
            yield found


def find_daemon(control: MpsControl) -> FoundDaemon | None:
    """Return the daemon that listens in these directories; None if none answers.

    Without a program to ask it, a daemon is one that the PID file names, if that runs.
    """
    pid = control.directories.recorded_pid()
    if pid is None or not (is_of_mps(pid) if control.program is None else control.answers()):
        return None
    known = pid if is_of_mps(pid) else None
    visible = (variables_of(pid) or {}).get("CUDA_VISIBLE_DEVICES") if known else None
    if visible is None:
        # Another user's environment cannot be read; a daemon for a whole machine is started without it.
        return FoundDaemon(control, known, control.directories.cards() or None)
    cards = tuple(word.strip() for word in visible.split(",") if word.strip())
    problem = (
        f"it was started with CUDA_VISIBLE_DEVICES={','.join(cards)}, so that it renumbers its "
        "clients' cards: it should be started with UUIDs"
    )
    by_uuid = all(card.startswith(("GPU-", "MIG-")) for card in cards)
    return FoundDaemon(control, known, cards, None if by_uuid else problem)


def variables_of(pid: int) -> dict[str, str] | None:
    """Return a process's environment as it was started; None if it has ended or is another user's."""
    try:
        content = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    pairs = (entry.partition(b"=") for entry in content.split(b"\0") if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def is_of_mps(pid: int) -> bool:
    """Whether a process is a control daemon or a server of MPS."""
    try:
        content = (_PROC / str(pid) / "cmdline").read_bytes()
        state = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    if state.rpartition(")")[2].split()[:1] == ["Z"]:
        return False
    words = content.split(b"\0")[:2]
    return any(os.path.basename(os.fsdecode(word)).startswith("nvidia-cuda-mps-") for word in words)


def orphans_of(pipe: Path) -> Iterator[int]:
    """Yield the processes of MPS, of this user, that were started for a pipe directory."""
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        pid = int(folder.name)
        if is_of_mps(pid) and (variables_of(pid) or {}).get(PIPE_VARIABLE) == str(pipe):
            yield pid


def kill_orphans(directories: MpsDirectories) -> None:
    """Remove what an ended daemon of ours left behind: its sockets, and servers that still hold cards."""
    for pid in orphans_of(directories.pipe):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    directories.remove_sockets()


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


def daemon_statuses(
    program: Path | None, state_dir: Path, environ: Mapping[str, str]
) -> Iterator[DaemonStatus]:
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
    except MpsError as error:
        return (), f"its servers and clients are not known: {error.message}"


def _client(pid: int) -> ClientStatus:
    variables = variables_of(pid) or {}
    model, memory = variables.get(MODEL_VARIABLE), variables.get(MEMORY_VARIABLE)
    return ClientStatus(pid, model, memory, variables.get(THREADS_VARIABLE))
