"""Parts of the logs of engines, for a daemon on another machine."""

from pathlib import Path
from typing import Final

from cotenant.nodes.file_messages import LogBytes

_MOST_BYTES: Final = 1 << 20


def read_log(path: Path | None, offset: int | None, limit_bytes: int) -> LogBytes:
    """Read a part of a log from `offset` on, or its end; empty if there is no log. At most 1 MiB."""
    limit_bytes = max(0, min(limit_bytes, _MOST_BYTES))
    if path is None:
        return LogBytes(b"", 0, 0, None)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            # A file that is smaller than what was read of it is a new one.
            start = max(0, size - limit_bytes) if offset is None else offset if 0 <= offset <= size else 0
            file.seek(start)
            return LogBytes(file.read(limit_bytes), start, size, path)
    except FileNotFoundError:
        return LogBytes(b"", 0, 0, None)
