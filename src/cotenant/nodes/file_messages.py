"""What the daemon and an agent say to each other about logs and model files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Base64Bytes

from cotenant.domain.nodes import FileState


@dataclass(frozen=True, slots=True)
class LogPart:
    """Asks for a part of the log of a model's last engine: the end if `offset` is None."""

    name: str
    offset: int | None = None
    limit_bytes: int = 65_536


@dataclass(frozen=True, slots=True)
class LogBytes:
    """A part of a log from `offset` on. `size` is that of the whole file: smaller than before if rotated."""

    data: Base64Bytes
    offset: int
    size: int
    path: Path | None


@dataclass(frozen=True, slots=True)
class Paths:
    """Asks about files."""

    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class FileStatus:
    """A file on an agent's machine, and how much of it is in the page cache, None if unknown.

    `room_bytes` is what is free where one would be that is absent.
    """

    path: Path
    state: FileState
    size_bytes: int | None = None
    warm_bytes: int | None = None
    room_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """Files of an agent's machine."""

    files: tuple[FileStatus, ...]


@dataclass(frozen=True, slots=True)
class WatchFiles:
    """Asks to report these files from now on, and no others: FilesSeen follows, also for what changes."""

    epoch: int
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class AskWarmBudget:
    """Asks how much of the machine's RAM files may take: at most `limit_bytes`, None for half of it."""

    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class WarmBudget:
    """How many bytes of files may be in RAM now, and why none may be read now, if so."""

    budget_bytes: int
    paused: str | None = None


@dataclass(frozen=True, slots=True)
class Warm:
    """Reads the first `limit_bytes` of files into RAM, in place of what is read now: FilesWarmed follows.

    `at_idle` reads while nothing else uses the disk. `reason` is logged.
    """

    epoch: int
    number: int
    paths: tuple[Path, ...]
    reason: str
    limit_bytes: int | None = None
    at_idle: bool = False


@dataclass(frozen=True, slots=True)
class StopWarming:
    """Ends what Warm began."""

    epoch: int
    why: str


@dataclass(frozen=True, slots=True)
class ForgetFiles:
    """Gives the RAM of files back, except of those that a process has mapped."""

    epoch: int
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Pull:
    """Fetches a file from `url` to `path`, unless it is there; FileProgress events follow.

    `headers` are sent with each request. `sha256` (hexadecimal) and `size_bytes` are what it must have.
    """

    epoch: int
    path: Path
    url: str = field(repr=False)
    sha256: str
    size_bytes: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
