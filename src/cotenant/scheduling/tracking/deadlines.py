"""Which of many things is due next, without a look at all of them."""

from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Deadlines(Generic[Key]):
    """Keys, each with the instant at which it is due, the earliest first.

    `due` returns the instant as it is now, None if there is none any more. It is called when an entry comes
    up: an instant may be put off, or go, without a word. One that is new, or earlier than before, needs
    `watch`.
    """

    def __init__(self, due: Callable[[Key], float | None]) -> None:
        self._due = due
        self._heap: list[tuple[float, Key]] = []
        self._instants: dict[Key, float] = {}

    def watch(self, key: Key, due: float) -> None:
        """Look at a key at this instant at the latest."""
        known = self._instants.get(key)
        if known is None or due < known:
            self._instants[key] = due
            heappush(self._heap, (due, key))

    def pop_due(self, now: float) -> list[Key]:
        """Return the keys that are due, in their own order, and forget them."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            key = self._pop()
            due = None if key is None else self._due(key)
            if key is None or due is None:
                continue
            if due <= now:
                found.append(key)
            else:
                self.watch(key, due)
        return sorted(found)  # type: ignore[type-var]

    def next_after(self, now: float) -> float | None:
        """Return the first instant after `now`; None if there is none."""
        due_already = []
        found = None
        while self._heap and found is None:
            at, key = self._heap[0]
            is_current = self._instants.get(key) == at
            due = self._due(key) if is_current else None
            if is_current and due == at:
                if at > now:
                    found = at
                else:
                    due_already.append(heappop(self._heap))
                continue
            self._pop()
            if due is not None:
                self.watch(key, due)
        for entry in due_already:
            heappush(self._heap, entry)
        return found

    def _pop(self) -> Key | None:
        """Remove the first entry; None if a later `watch` has replaced it."""
        at, key = heappop(self._heap)
        if self._instants.get(key) != at:
            return None
        del self._instants[key]
        return key
