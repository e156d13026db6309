"""Where a model's bytes come from, for readers that know nothing of files."""

from __future__ import annotations

from typing import Protocol


class ByteSource(Protocol):
    """A named run of bytes that can be read anywhere."""

    @property
    def name(self) -> str:
        """What to call it in messages: a path."""
        ...

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read_at(self, offset: int, n: int) -> bytes:
        """Return `n` bytes from `offset`, fewer at the end. Raises ModelFileMissing if reading fails."""
        ...
