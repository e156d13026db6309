"""How long loads take on each machine: as measured, else by bytes and by where the files are."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

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
_MUCH_LARGER: Final = 8


class _Rate(NamedTuple):
    """Bytes per second, as measured with so many bytes."""

    size: int
    bytes_per_s: float


class LoadTimes:
    """Learns from loads and fetches; times of one kind are smoothed, the newest counts for half.

    A model's own loads on a machine go before what other models teach of that machine. Those teach by their
    bytes per second, of the largest ones: of a small load most is the start of its engine, so it says nothing
    of much larger ones. Of so many models and machines that they do not fit in `_MOST`, those that loaded
    last are remembered.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str, FileState], float] = {}
        self._rates: dict[tuple[str, FileState], _Rate] = {}

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
        before, now = self._rates.get((node, state)), _Rate(size, size / max(seconds, 1e-3))
        if before is not None and size <= before.size * 2:
            if size * 2 < before.size:
                return
            now = _Rate(max(size, before.size), _smooth(before.bytes_per_s, now.bytes_per_s))
        if size > 0:
            self._rates[node, state] = now

    def load_s(self, model: str, node: str, state: FileState, size: int) -> float:
        """Return how long a model of `size` bytes loads whose files are in one state.

        What is nearer loads no slower than it was measured to load from farther away.
        """
        own = self._seconds.get((model, node, state))
        if own is not None:
            return own
        guess = max(_AT_LEAST_S, size / self._rate(node, state, size))
        farther = _FASTER[: _FASTER.index(state)]
        return min([guess, *(s for each in farther if (s := self._seconds.get((model, node, each))))])

    def fetch_s(self, node: str, size: int) -> float:
        """Return how long it takes a machine to fetch so many bytes."""
        return _AT_LEAST_S + size / self._rate(node, FileState.ABSENT, size)

    def as_json(self) -> dict[str, Any]:
        """Return what was learned, for the next run."""
        return {
            "seconds": [[*key, seconds] for key, seconds in self._seconds.items()],
            "rates": [[*key, rate.size, rate.bytes_per_s] for key, rate in self._rates.items()],
        }

    def remember(self, kept: Mapping[str, Any]) -> None:
        """Take what an earlier run learned; nothing of it if that is no such thing."""
        try:
            seconds = {(str(m), str(n), FileState(s)): float(v) for m, n, s, v in kept.get("seconds", ())}
            rates = {
                (str(n), FileState(s)): _Rate(int(size), float(v)) for n, s, size, v in kept.get("rates", ())
            }
        except (TypeError, ValueError):
            return
        if all(value > 0 for value in (*seconds.values(), *(rate.bytes_per_s for rate in rates.values()))):
            self._seconds, self._rates = seconds, rates

    def _rate(self, node: str, state: FileState, size: int) -> float:
        found = self._rates.get((node, state))
        if found is None or size > found.size * _MUCH_LARGER:
            return _USUAL_BYTES_PER_S[state]
        return found.bytes_per_s


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else (1 - _NEWEST) * before + _NEWEST * now
