"""Writing files so that a power cut leaves either the old or the new content."""

import contextlib
import os
import secrets
from pathlib import Path


def write_durably(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replace `path` by a new file. Raises OSError, and then `path` is unchanged.

    `mode` are its permissions; None: 0644 minus the umask.
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
    """Write and sync a temporary file in the folder of `path`, to be renamed to it. Raises OSError."""
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
    """Sync a folder, so that its file names survive a power cut, if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
