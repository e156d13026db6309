"""Writing files so that a power cut leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_durably(path: Path, content: bytes, mode: int | None = None) -> None:
    """Put a whole new file in place of `path`. Raises OSError, and then `path` is as it was.

    `mode` are its permissions; None: 0644, less what the umask takes.
    """
    replacement = staged(path, content, mode)
    try:
        replacement.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            replacement.unlink()
        raise
    sync_folder(path.parent)


def staged(path: Path, content: bytes, mode: int | None = None) -> Path:
    """Write a file beside `path`, on the disk for good, to be renamed to it. Raises OSError."""
    replacement = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(
            replacement, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644 if mode is None else mode
        )
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            replacement.unlink()
        raise
    return replacement


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut, where the file system can promise that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
