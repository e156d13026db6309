"""What clients ask for, and what the operator changes in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from cotenant.domain.engines import ALONE, Companions, EngineBuild, EngineReport
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.placements import Placement


@dataclass(frozen=True, slots=True)
class RequestRules:
    """Fields of requests by OpenAI's names: removed first (`strip`), then set, then limited.

    `set` replaces what a client sends; objects are merged. `limit` is the most that a number may be.
    """

    set: Mapping[str, Any] = field(default_factory=dict)
    strip: tuple[str, ...] = ()
    limit: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.set or self.strip or self.limit)

    def over(self, base: RequestRules) -> RequestRules:
        """Return the rules of a variant of a model with the rules `base`: its own win."""
        return RequestRules(
            overlaid(base.set, self.set),
            tuple(dict.fromkeys((*base.strip, *self.strip))),
            {**base.limit, **self.limit},
        )


NO_RULES: Final = RequestRules()


def overlaid(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return both mappings as one, and those in them: what `upper` says wins."""
    return {**lower} | {
        key: overlaid(lower[key], each)
        if isinstance(each, dict) and isinstance(lower.get(key), dict)
        else each
        for key, each in upper.items()
    }


class GroupUse(StrEnum):
    """Which member of a group serves a request: one that is loaded, or the first."""

    WARM = "warm"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class ModelGroup:
    """A name for several models, of which one serves each request.

    Members come one after another, with `WARM` those that are loaded first. One that has `spill_over`
    requests or more is passed over while another has fewer, None for never. Who is refused by one goes to the
    next.
    """

    name: str
    members: tuple[str, ...]
    use: GroupUse = GroupUse.WARM
    spill_over: int | None = None
    rules: RequestRules = NO_RULES


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a model's file states; `bytes` are those of all its parts. Unknown is None.

    A model without a `chat_template` in its file continues texts and is not made for chats.
    """

    path: str
    bytes: int
    architecture: str
    parameters: int
    quantisation: str | None
    n_layers: int
    n_ctx_train: int | None
    n_embd: int | None = None
    chat_template: bool | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that clients may name; `created_at` is Unix seconds. Unknown is None.

    The log of its last engine is at `log_path`, or on another machine, `log_node`.
    `recipe` is how it runs when it is loaded, with its `companions`; `vision` says that it takes images,
    `hearing` sounds. Requests follow `rules`, or those of the variant that they name. A group has `members`,
    and is else like the one that would serve it now.
    """

    name: str
    kind: ModelKind
    created_at: int
    aliases: tuple[str, ...] = ()
    state: str = "ready"
    placement: Placement | None = None
    build: EngineBuild | None = None
    report: EngineReport | None = None
    log_path: str | None = None
    log_node: str | None = None
    recipe: Recipe | None = None
    file: ModelFile | None = None
    vision: bool = False
    hearing: bool = False
    companions: Companions = ALONE
    rules: RequestRules = NO_RULES
    variants: Mapping[str, RequestRules] = field(default_factory=dict)
    members: tuple[str, ...] = ()


class WaitProgress(StrEnum):
    """How clients of streams are told of their wait: not, in comments, or as reasoning of the model."""

    OFF = "off"
    COMMENTS = "comments"
    REASONING = "reasoning"


@dataclass(frozen=True, slots=True)
class GuestTerms:
    """What a command wants: memory of one device, any or `gpu`, for `lasts_s`, None without an end.

    It waits `wait_s` at most. `pid` is its process, or one that it descends from.
    """

    bytes: int
    gpu: str | None = None
    lasts_s: float | None = None
    wait_s: float = 600.0
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """The terms of a request for its lease; None means the model's own setting.

    `keep_alive_s` is how long the model stays loaded after it; 0 unloads it at once. A higher `priority` goes
    first. `conversation` are keys of the request's beginnings, for a model with several copies.
    """

    priority: int | None = None
    keep_alive_s: float | None = None
    timeout_s: float | None = None
    conversation: tuple[int, ...] = ()


DEFAULT_TERMS = LeaseTerms()
