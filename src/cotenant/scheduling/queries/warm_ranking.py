"""Which models' files are worth their place in host RAM: those whose next load it shortens most."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cotenant.scheduling.state import State

_STAYS: Final = 1.5
"""How much more a model must be worth than one that is kept, to take its place."""


@dataclass(frozen=True, slots=True)
class WarmCandidate:
    """A model with `file_bytes` of files. `worth` is the seconds of waiting that its loads cost per second.

    A `loaded` one is not read again before it is unloaded: it gets what the others leave.
    """

    model: str
    file_bytes: int
    worth: float
    loaded: bool = False


def rank(candidates: Iterable[WarmCandidate], budget_bytes: int, kept: Mapping[str, int]) -> dict[str, int]:
    """Return how many bytes to keep of which models, the most worthwhile first.

    They are ordered by worth per byte, as a file takes room in proportion to the time that it saves. The
    last one may get a part. `kept` is what is kept now: it gives way only to what is worth clearly more.
    """

    def key(each: WarmCandidate) -> tuple[bool, float, str]:
        density = each.worth / each.file_bytes * (_STAYS if each.model in kept else 1.0)
        return each.loaded, -density, each.model

    chosen = {}
    for each in sorted((c for c in candidates if c.worth > 0 and c.file_bytes > 0), key=key):
        if budget_bytes <= 0:
            break
        chosen[each.model] = min(each.file_bytes, budget_bytes)
        budget_bytes -= chosen[each.model]
    return chosen


def warm_candidates(state: State, file_bytes: Mapping[str, int], now: float) -> Iterator[WarmCandidate]:
    """Yield the models with files, except those that stay loaded.

    A load counts with the time of a cold one: a model that loads fast because it is kept must not lose its
    place for that.
    """
    for name, size in file_bytes.items():
        model = state.models.get(name)
        if model is None or (model.residency is not None and model.stays):
            continue
        load_s = max(model.load_s, model.spec.load_s)
        yield WarmCandidate(name, size, model.demand.rate(now) * load_s, model.residency is not None)
