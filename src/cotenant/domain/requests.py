"""What clients ask for."""

from dataclasses import dataclass
from enum import StrEnum

from cotenant.domain.engines import EngineBuild, EngineReport
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.placements import Placement


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

    `recipe` is how it runs when it is loaded; `vision` says that it takes images.
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
    recipe: Recipe | None = None
    file: ModelFile | None = None
    vision: bool = False


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
