"""Where an MPS control daemon listens and logs, which cards it serves, and how its clients find it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.domain.errors import MpsFailed
from cotenant.domain.units import MIB

PIPE_VARIABLE: Final = "CUDA_MPS_PIPE_DIRECTORY"
LOG_VARIABLE: Final = "CUDA_MPS_LOG_DIRECTORY"
MODEL_VARIABLE: Final = "COTENANT_MODEL"
"""Shows `cotenant mps status` which model a client runs."""
MEMORY_VARIABLE: Final = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
THREADS_VARIABLE: Final = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
_CARDS_FILE: Final = "cards"
_OWNER_ONLY: Final = 0o700


@dataclass(frozen=True, slots=True)
class MpsDirectories:
    """The pipe and log directories of one control daemon; `ours` are those under the state directory."""

    pipe: Path
    log: Path
    ours: bool = True

    @classmethod
    def of_cards(cls, state_dir: Path, cards: Sequence[str]) -> MpsDirectories:
        """Return the directories of the daemon that serves exactly these cards (UUIDs)."""
        name = f"cards-{hashlib.sha256(','.join(sorted(cards)).encode()).hexdigest()[:8]}"
        # Short, since the path of a socket is limited.
        # A MIG slice of an old driver is `MIG-GPU-<card>/<instance>/<instance>`.
        if len(cards) == 1 and "/" not in cards[0]:
            name = cards[0][:16]
        return cls(state_dir / "mps" / name / "pipe", state_dir / "mps" / name / "log")

    @classmethod
    def by_default(cls, environ: Mapping[str, str]) -> MpsDirectories:
        """Return the directories that a client uses by default: the environment's or NVIDIA's."""
        return cls(
            Path(environ.get(PIPE_VARIABLE) or "/tmp/nvidia-mps"),  # noqa: S108  NVIDIA's choice
            Path(environ.get(LOG_VARIABLE) or "/var/log/nvidia-mps"),
            ours=False,
        )

    @classmethod
    def all_ours(cls, state_dir: Path) -> Iterator[MpsDirectories]:
        """Yield the directories of every daemon that Cotenant has started and not cleaned up after."""
        pipes = sorted((state_dir / "mps").glob("*/pipe"))
        yield from (cls(pipe, pipe.parent / "log") for pipe in pipes if pipe.is_dir())

    @classmethod
    def known(cls, state_dir: Path, environ: Mapping[str, str]) -> list[MpsDirectories]:
        """List our own directories, then those of the daemon that clients find by default."""
        ours, by_default = [*cls.all_ours(state_dir)], cls.by_default(environ)
        return ours if by_default.pipe in [each.pipe for each in ours] else [*ours, by_default]

    def variables(self) -> dict[str, str]:
        """Return the variables of the control program."""
        return {PIPE_VARIABLE: str(self.pipe), LOG_VARIABLE: str(self.log)}

    def client_variables(
        self, model: str, memory_bytes: Sequence[int] = (), threads_percent: int | None = None
    ) -> dict[str, str]:
        """Return the variables of a client (NVIDIA's MPS documentation, "Environment Variables").

        It may take `memory_bytes` on each device in the order in which it sees them, and a share of the SMs;
        without them MPS sets no limit of that kind.
        """
        variables = {PIPE_VARIABLE: str(self.pipe), MODEL_VARIABLE: model}
        if memory_bytes:
            limits = (f"{number}={-(-count // MIB)}M" for number, count in enumerate(memory_bytes))
            variables[MEMORY_VARIABLE] = ",".join(limits)
        if threads_percent is not None:
            variables[THREADS_VARIABLE] = str(threads_percent)
        return variables

    def create(self, cards: Sequence[str]) -> None:
        """Create the directories, accessible to their owner only, and record the cards. Raises MpsFailed."""
        # The longest name of its sockets; `sun_path` of unix(7) holds 107 bytes and a final zero.
        if len(os.fsencode(self.pipe / "control_privileged")) > 107:
            raise MpsFailed(
                f"{self.pipe} is too long a path for MPS's sockets",
                hint="Set COTENANT_STATE_DIR to a shorter one.",
            )
        try:
            for folder in (self.pipe.parent.parent, self.pipe.parent, self.pipe, self.log):
                folder.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
                found = folder.lstat()
                # Anyone who can write there can act as any client.
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                    raise MpsFailed(f"{folder} is not a folder of this user", hint="Move it away.")
                if stat.S_IMODE(found.st_mode) != _OWNER_ONLY:
                    folder.chmod(_OWNER_ONLY)
            (self.pipe.parent / _CARDS_FILE).write_text("\n".join(cards) + "\n", encoding="utf-8")
        except OSError as error:
            raise MpsFailed(
                f"{error.filename} cannot be made for MPS: {error.strerror}",
                hint="Check the rights of the state directory, or set COTENANT_STATE_DIR.",
            ) from None

    def cards(self) -> tuple[str, ...]:
        """Return the cards that `create` recorded; empty if there is no record."""
        try:
            return tuple((self.pipe.parent / _CARDS_FILE).read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError):
            return ()

    def recorded_pid(self) -> int | None:
        """Return the process that the PID file names, running or not; None without one."""
        try:
            text = (self.pipe / "nvidia-cuda-mps-control.pid").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return int(text) if text.isdecimal() and 0 < int(text) < 1 << 31 else None

    def try_lock(self) -> int | None:
        """Lock the right to start a daemon here until the descriptor is closed; None if it is taken.

        The kernel releases it when its holder is killed. Raises MpsFailed.
        """
        try:
            fd = os.open(self.pipe.parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise MpsFailed(f"{error.filename} cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return fd

    def remove_sockets(self) -> None:
        """Remove what a daemon that has ended left in its pipe directory. Only for our own directories."""
        if not self.ours:
            raise ValueError(f"{self.pipe} belongs to another daemon")
        try:
            left = [path for path in self.pipe.iterdir() if not path.is_dir()]
        except OSError:
            return
        for path in left:
            path.unlink(missing_ok=True)
