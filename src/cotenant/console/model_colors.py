"""The colour of each model, the same on all pages."""

from collections.abc import Collection, Mapping
from typing import Final
from zlib import crc32

COLOURS: Final = 10


class Palette:
    """Assigns a colour to each model while it is loaded; colours differ as long as there are enough."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def of(self, names: Collection[str]) -> Mapping[str, int]:
        """Return a colour from 0 to 9 for each of these loaded models."""
        for gone in self._given.keys() - set(names):
            del self._given[gone]
        for name in sorted(names):
            if name not in self._given:
                self._given[name] = self._free(crc32(name.encode("utf-8", "replace")) % COLOURS)
        return dict(self._given)

    def _free(self, wanted: int) -> int:
        taken = list(self._given.values())
        turns = [(wanted + step) % COLOURS for step in range(COLOURS)]
        return min(turns, key=taken.count)
