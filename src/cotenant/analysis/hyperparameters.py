"""Typed access to GGUF metadata, by the key names of llama.cpp."""

from typing import NoReturn, overload

from cotenant.analysis.gguf import GgufArray, GgufHeader, Number
from cotenant.domain.errors import CorruptModelFile, UnsupportedModelFile
from cotenant.domain.units import printable

MOST_BLOCKS = 512


class Hyperparameters:
    """The keys of one header; `.embedding_length` means that key under the architecture's name.

    Reading raises CorruptModelFile if a value is of the wrong type.
    """

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.architecture = self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        """Return a text, None if absent."""
        value = self._get(key)
        if value is not None and not isinstance(value, str):
            self._wrong(key, "a text")
        return value and printable(value)

    @overload
    def count(self, key: str) -> int | None: ...
    @overload
    def count(self, key: str, default: int) -> int: ...
    def count(self, key: str, default: int | None = None) -> int | None:
        """Return a count, zero or more."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, int) or value < 0:
            self._wrong(key, "a count")
        return value

    def required(self, key: str) -> int:
        """Return a count that must be present and not zero. Raises UnsupportedModelFile if absent."""
        value = self.count(key)
        if value is None:
            raise UnsupportedModelFile(
                f"{self.header.source_name} has no {self._full(key)}: it is no language model that "
                f"llama.cpp runs (architecture {self.architecture!r})",
                hint="Give the GGUF file of a language or embedding model.",
            )
        if value == 0:
            self._wrong(key, "more than zero")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._wrong(key, "true or false")
        return value

    def array(self, key: str) -> tuple[Number, ...] | None:
        """Return an array of numbers; None if the key is absent or holds a single number."""
        value = self._get(key)
        if not isinstance(value, GgufArray):
            return None
        if value.values is None:
            self._wrong(key, "a short array of numbers")
        return value.values

    def per_block(self, key: str, n_blocks: int) -> list[int] | None:
        """Return one count per block from an array or one number for all; None if absent."""
        values = self.array(key)
        if values is None:
            single = self.count(key)
            return None if single is None else [single] * n_blocks
        if len(values) < n_blocks or any(not isinstance(value, int) or value < 0 for value in values):
            self._wrong(key, f"one count for each of {n_blocks} blocks")
        return [int(value) for value in values[:n_blocks]]

    def length(self, key: str) -> int | None:
        """Return how long an array is, None if absent."""
        value = self._get(key)
        return value.length if isinstance(value, GgufArray) else None

    def has(self, key: str) -> bool:
        """Whether the key is present."""
        return self._get(key) is not None

    def _get(self, key: str) -> object:
        return self.header.metadata.get(self._full(key))

    def _full(self, key: str) -> str:
        return f"{self.architecture}{key}" if key.startswith(".") else key

    def _wrong(self, key: str, expected: str) -> NoReturn:
        raise CorruptModelFile(
            f"{self.header.source_name}: {self._full(key)} should be {expected}, not {self._get(key)!r:.80}",
            hint="Fetch the file again, or convert it again.",
        )
