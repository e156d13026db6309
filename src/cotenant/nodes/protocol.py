"""The methods of an agent, and how calls and errors become JSON: one place for both sides.

A call is a line `{"id": 1, "method": "renew", "params": {…}}`; its answer is a line with the same id and
a `result`, or an `error` (ErrorBody). Answers may come in another order than calls.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from cotenant.domain.engines import FoundBuilds
from cotenant.domain.errors import CotenantError, EngineError
from cotenant.domain.nodes import BadNodeMessage
from cotenant.nodes.file_messages import (
    AskWarmBudget,
    Files,
    ForgetFiles,
    LogBytes,
    LogPart,
    Paths,
    Pull,
    StopWarming,
    Warm,
    WarmBudget,
    WatchFiles,
)
from cotenant.nodes.messages import (
    AwaitReady,
    BusySlots,
    DoctorReport,
    EngineStatus,
    ErrorBody,
    Events,
    Hello,
    HelloAnswer,
    InstallBegun,
    InstallEngine,
    LoadProgress,
    Nothing,
    OfEngine,
    Poll,
    Release,
    Renew,
    ShareCards,
    Stamp,
    Start,
    Stop,
)

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")

Json = dict[str, Any]
"""A JSON object."""

MAX_LINE_BYTES: Final = 16 << 20
"""The longest line of either side; a line of any other length is no message of ours."""


@dataclass(frozen=True, slots=True)
class Method(Generic[P, R]):
    """One method of an agent: its name, and the classes of its params and its result."""

    name: str
    params: type[P]
    result: type[R]


HELLO: Final = Method("hello", Hello, HelloAnswer)
RENEW: Final = Method("renew", Renew, Stamp)
SHARE_CARDS: Final = Method("share_cards", ShareCards, Nothing)
START: Final = Method("start", Start, EngineStatus)
AWAIT_READY: Final = Method("await_ready", AwaitReady, Nothing)
STOP: Final = Method("stop", Stop, Nothing)
RELEASE: Final = Method("release", Release, Nothing)
BUSY_SLOTS: Final = Method("busy_slots", OfEngine, BusySlots)
LOAD_PROGRESS: Final = Method("load_progress", OfEngine, LoadProgress)
LOG: Final = Method("log", LogPart, LogBytes)
POLL: Final = Method("poll", Poll, Events)
FILES: Final = Method("files", Paths, Files)
WATCH_FILES: Final = Method("watch_files", WatchFiles, Nothing)
WARM_BUDGET: Final = Method("warm_budget", AskWarmBudget, WarmBudget)
WARM: Final = Method("warm", Warm, Nothing)
STOP_WARMING: Final = Method("stop_warming", StopWarming, Nothing)
FORGET_FILES: Final = Method("forget_files", ForgetFiles, Nothing)
PULL: Final = Method("pull", Pull, Nothing)
DOCTOR: Final = Method("doctor", Nothing, DoctorReport)
BUILDS: Final = Method("builds", Nothing, FoundBuilds)
INSTALL_ENGINE: Final = Method("install_engine", InstallEngine, InstallBegun)

METHODS: Final = (
    HELLO,
    RENEW,
    SHARE_CARDS,
    START,
    AWAIT_READY,
    STOP,
    RELEASE,
    BUSY_SLOTS,
    LOAD_PROGRESS,
    LOG,
    POLL,
    FILES,
    WATCH_FILES,
    WARM_BUDGET,
    WARM,
    STOP_WARMING,
    FORGET_FILES,
    PULL,
    DOCTOR,
    BUILDS,
    INSTALL_ENGINE,
)


def to_json(value: Any) -> Json:
    """Return a message as a JSON object."""
    found: Json = _adapter(cast(Hashable, type(value))).dump_python(value, mode="json")
    return found


def from_json(kind: type[T], value: object) -> T:
    """Read a message. Raises BadNodeMessage, which names the first field that is wrong."""
    try:
        found: T = _adapter(cast(Hashable, kind)).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole of it"
        raise BadNodeMessage(
            f"a message between daemon and agent is not a {kind.__name__}: {where}: {first['msg']}",
            hint="Run the same version of Cotenant on all machines.",
        ) from None
    return found


def error_to_json(error: CotenantError) -> Json:
    """Return an error as a JSON object."""
    return to_json(error_body(error))


def error_body(error: CotenantError) -> ErrorBody:
    """Return an error as it travels."""
    engine = error if isinstance(error, EngineError) else None
    return ErrorBody(
        error.code,
        error.message,
        error.hint,
        error.retry_after_s,
        None if engine is None else engine.cause,
        None if engine is None else engine.lacking,
    )


def error_from(body: ErrorBody) -> CotenantError:
    """Return an error of the class that it had on the other side; CotenantError if that is not known here."""
    kind = _errors().get(body.code, CotenantError)
    error = kind(body.message, hint=body.hint)
    error.retry_after_s = body.retry_after_s
    if isinstance(error, EngineError):
        error.cause = error.cause if body.cause is None else body.cause
        error.lacking = body.lacking
    return error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _errors() -> dict[str, type[CotenantError]]:
    def below(kind: type[CotenantError]) -> Iterator[type[CotenantError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from below(each)

    return {kind.code: kind for kind in below(CotenantError)}
