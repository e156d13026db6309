"""The interface for reading a model's bytes, independent of files."""

from typing import Protocol


class ByteSource(Protocol):
    """A named sequence of bytes with random access."""

    @property
    def name(self) -> str:
        """Its name in messages: a path."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read_at(self, offset: int, n: int) -> bytes:
        """Return `n` bytes from `offset`, fewer at the end. Raises ModelFileMissing if reading fails."""
