"""How much of some files a process has read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LoadedBytes:
    """Bytes of its files that a process has read, and their total; None if the kernel does not report it."""

    read_bytes: int | None
    total_bytes: int


def loaded_bytes(pid: int, paths: Sequence[Path], *, proc: Path = Path("/proc")) -> LoadedBytes:
    """Return how much of some files a process has mapped into memory, or has read.

    The page cache does not show it: the load of a file that is cached already takes long as well, although
    nothing is read from the disk. This counts how much is mapped and touched (`/proc/PID/smaps`) or, if that
    is more, what its reads have returned (`rchar` of `/proc/PID/io`): engines do one or the other. Walking
    the mappings takes some milliseconds a gigabyte: not for the thread of an event loop. Raises OSError if a
    file is missing.
    """
    total = sum(path.stat().st_size for path in paths)
    found = [_mapped_bytes(proc / str(pid) / "smaps", paths), _returned_bytes(proc / str(pid) / "io")]
    known = [count for count in found if count is not None]
    return LoadedBytes(min(max(known), total) if known else None, total)


def _mapped_bytes(smaps: Path, paths: Sequence[Path]) -> int | None:
    """Sum the resident parts of the mappings of some files; 0 if none is mapped."""
    names = tuple(f" {path.resolve()}".encode() for path in paths)
    total, ours = 0, False
    try:
        with smaps.open("rb") as lines:
            for line in lines:
                # A mapping's first line has its addresses and its file; facts follow as `Name: value`.
                if not line[:1].isupper():
                    ours = line.rstrip(b"\n").endswith(names)
                elif ours and line.startswith(b"Rss:"):
                    total += int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return total


def _returned_bytes(io: Path) -> int | None:
    try:
        fields = dict(line.split(": ") for line in io.read_text(encoding="ascii").splitlines())
        return int(fields["rchar"])
    except (OSError, ValueError, KeyError):
        return None
