"""How long loads take on each machine: as measured, else by bytes and by where the files are."""

from collections.abc import Mapping
from typing import Any, Final

from cotenant.domain.nodes import FileState

_AT_LEAST_S: Final = 1.0
_USUAL_BYTES_PER_S: Final = {
    FileState.WARM: 4e9,
    FileState.LOCAL: 1e9,
    FileState.SHARED: 2.5e8,
    FileState.ABSENT: 1e8,
}
"""A PCIe 4 card from RAM, a disk with a SATA or an older NVMe bus, two gigabits of a network, a hub."""
_FASTER: Final = (FileState.SHARED, FileState.LOCAL, FileState.WARM)
_NEWEST: Final = 0.5
_MOST: Final = 5_000


class LoadTimes:
    """Learns from loads and fetches; times of one kind are smoothed, the newest counts for half.

    A model's own loads on a machine go before what other models teach of that machine. Of so many models and
    machines that they do not fit in `_MOST`, those that loaded last are remembered.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str, FileState], float] = {}
        self._bytes_per_s: dict[tuple[str, FileState], float] = {}

    def learn(self, model: str, node: str, state: FileState, size: int, seconds: float) -> None:
        """Learn from a load of `size` bytes that were all in one state."""
        seconds = max(seconds, 1e-3)
        key = model, node, state
        self._seconds[key] = _smooth(self._seconds.pop(key, None), seconds)
        if len(self._seconds) > _MOST:
            del self._seconds[next(iter(self._seconds))]
        self.learn_rate(node, state, size, seconds)

    def learn_rate(self, node: str, state: FileState, size: int, seconds: float) -> None:
        """Learn how fast a machine reads files in one state, or fetches those that are absent."""
        if size > 0 and seconds > 0:
            key = node, state
            self._bytes_per_s[key] = _smooth(self._bytes_per_s.get(key), size / seconds)

    def load_s(self, model: str, node: str, state: FileState, size: int) -> float:
        """Return how long a model of `size` bytes loads whose files are in one state.

        What is nearer loads no slower than it was measured to load from farther away.
        """
        own = self._seconds.get((model, node, state))
        if own is not None:
            return own
        guess = max(_AT_LEAST_S, size / self._rate(node, state))
        farther = _FASTER[: _FASTER.index(state)]
        return min([guess, *(s for each in farther if (s := self._seconds.get((model, node, each))))])

    def fetch_s(self, node: str, size: int) -> float:
        """Return how long it takes a machine to fetch so many bytes."""
        return _AT_LEAST_S + size / self._rate(node, FileState.ABSENT)

    def as_json(self) -> dict[str, Any]:
        """Return what was learned, for the next run."""
        return {
            "seconds": [[*key, seconds] for key, seconds in self._seconds.items()],
            "bytes_per_s": [[*key, rate] for key, rate in self._bytes_per_s.items()],
        }

    def remember(self, kept: Mapping[str, Any]) -> None:
        """Take what an earlier run learned; nothing of it if that is no such thing."""
        try:
            seconds = {(str(m), str(n), FileState(s)): float(v) for m, n, s, v in kept.get("seconds", ())}
            rates = {(str(n), FileState(s)): float(v) for n, s, v in kept.get("bytes_per_s", ())}
        except (TypeError, ValueError):
            return
        if all(value > 0 for value in (*seconds.values(), *rates.values())):
            self._seconds, self._bytes_per_s = seconds, rates

    def _rate(self, node: str, state: FileState) -> float:
        return self._bytes_per_s.get((node, state), _USUAL_BYTES_PER_S[state])


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else (1 - _NEWEST) * before + _NEWEST * now
