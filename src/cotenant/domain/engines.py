"""The programs that run models, their settings, and what they report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from urllib.parse import SplitResult

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.exit_causes import Cause
from cotenant.domain.models import Parts

LOG_MARK: Final = "[cotenant] "
"""How a line of an engine's log begins that is ours."""


class EngineForm(StrEnum):
    """The forms of llama.cpp's program; for other kinds of engines the form is the name of the kind."""

    SERVER = "llama-server"
    EMBEDDED = "xllamacpp"


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """A device as an engine's build lists it: its own name for it (`CUDA0`), and the card's."""

    name: str
    description: str
    total_bytes: int | None = None
    free_bytes: int | None = None

    @property
    def label(self) -> str:
        """Name the card without the engine's number of it, which differs from the driver's."""
        return f"{self.description} ({self.name.rstrip('0123456789')})"

    @property
    def backend(self) -> str:
        """The engine's name without its number, in lower case: `cuda`, `rocm`, `vulkan`, `rpc`."""
        return self.name.rstrip("0123456789").lower()


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """A program on this machine that can run models, and the GPUs that it sees.

    `program` is the file to execute; `problem` says in one sentence why the build cannot be used.
    `rpc_server` is the program beside it that lends GPUs to a llama-server on another machine, None if there
    is none, or it could not use such GPUs.
    """

    kind: EngineKind
    form: str
    program: str
    version: str
    devices: tuple[EngineDevice, ...] = ()
    problem: str | None = None
    rpc_server: str | None = None

    @property
    def sees_gpus(self) -> bool:
        """Whether the build lists any device besides the CPU."""
        return bool(self.devices)


@dataclass(frozen=True, slots=True)
class FoundBuilds:
    """The programs of a machine that can run models; which of them does, by its place, else why none does."""

    builds: tuple[EngineBuild, ...]
    has_gpus: bool
    chosen: int | None = None
    refusal: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class InstallOrder:
    """Which build to install: `flavour` None is the one of the machine's GPUs, `index` None upstream's.

    The tested version is taken, if its hash is known or need not be (`verify`), or the index's `newest`. A
    `dry_run` says what would run.
    """

    flavour: str | None = None
    index: str | None = None
    verify: bool = True
    newest: bool = False
    dry_run: bool = False


class InstallStage(StrEnum):
    """What a step of an install says."""

    COMMAND = "command"
    NOTE = "note"
    OUTPUT = "output"
    INSTALLED = "installed"


@dataclass(frozen=True, slots=True)
class InstallStep:
    """One line about an install of a `flavour`; the last one of a successful one has the `build`."""

    stage: InstallStage
    text: str
    flavour: str
    build: EngineBuild | None = None


def kind_of_build(label: str | None) -> EngineKind | None:
    """Return the kind of engine that `FORM VERSION` names; None if it names none."""
    form = (label or "").partition(" ")[0]
    if form in (EngineForm.SERVER, EngineForm.EMBEDDED):
        return EngineKind.LLAMA_CPP
    return next((kind for kind in EngineKind if kind == form), None)


_VERSION: Final = re.compile(r"v[0-9]+[a-z0-9]*")
_OPERATION: Final = re.compile(r"/(?:chat/)?completions$|(?<=/v1)/(?:models|embeddings|responses|messages)$")
"""What is too much of an address, as many documents give it whole."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens, and how it is addressed.

    `prefix` comes before every path, `version` in place of the `/v1` with which most begin, and `query` after
    it. `model` is the name by which it knows the model, None for that of the
    request; `key` is sent as a bearer token. `kind` is what serves there, None if that is unknown.
    `listeners` are the inodes of the sockets on which an engine of ours listens: nothing goes to any other.
    `gate` is what the gate of another machine, which then listens here, asks for before it passes anything on
    to the engine; `ca` is the file of the authorities that vouch for it, if not the system's.
    """

    host: str
    port: int
    tls: bool = False
    prefix: str = ""
    version: str = "/v1"
    query: str = ""
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    kind: EngineKind | None = None
    listeners: frozenset[int] = field(default=frozenset(), compare=False)
    gate: str | None = field(default=None, repr=False)
    ca: str | None = None

    @classmethod
    def at(cls, parts: SplitResult) -> Endpoint:
        """Read an address as providers document it: the base URL of OpenAI's clients, or without `/v1`.

        A path with a version of its own, as Gemini's `/v1beta/openai` or `/api/paas/v4`, is the whole base;
        so is what comes before `/chat/completions`.
        """
        given = parts.path.rstrip("/")
        path = _OPERATION.sub("", given)
        own_version = path != given or any(map(_VERSION.fullmatch, path.split("/")))
        whole = own_version and not path.endswith("/v1")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host, tls = parts.hostname or "", parts.scheme == "https"
        return cls(host, port, tls, path.removesuffix("/v1"), "" if whole else "/v1", parts.query)

    def target(self, path: str) -> str:
        """Return the target of a request to a path."""
        if path.startswith("/v1/"):
            path = self.version + path.removeprefix("/v1")
        if self.query:
            path += ("&" if "?" in path else "?") + self.query
        return self.prefix + path

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """Host and port, as in a URL and the Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class EngineEnd:
    """How an engine's process ended, in whole sentences; `cause` is None if it was stopped on purpose.

    `cuts_requests` says that it was stopped in spite of its requests.
    """

    why: str
    cause: Cause | None = None
    cuts_requests: bool = False


@dataclass(frozen=True, slots=True)
class ReportedDevice:
    """Bytes that an engine reports for one device, under the engine's own name for it."""

    name: str
    pci_bus_id: str | None
    parts: Parts
    on_host: bool = False


@dataclass(frozen=True, slots=True)
class EngineReport:
    """The memory that an engine reported."""

    devices: tuple[ReportedDevice, ...]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The operator's settings for a model's engine beyond its recipe.

    Each kind of engine reads those that its traits name as `keys`.

    `command` starts it and `stop` ends it: both may hold the words in braces that `docs/engines.md` lists;
    without `stop` it gets SIGTERM. `health_path` answers 200 once it serves. `address` is a server that
    others run, with its key. `model` is the model's name on the server, None if it is the same.
    `sleep` is the level at which it sleeps instead of stopping, 0 for never: at level 1 the weights stay in
    host RAM; at level 2 they are discarded and read again.
    """

    command: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    health_path: str = "/health"
    address: Endpoint | None = None
    model: str | None = None
    sleep: int = 0


NO_OPTIONS = EngineOptions()


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter or a control vector: its file, and how much of it is added to the model."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Companions:
    """What an engine loads besides a model and its projector, as absolute paths.

    `draft` is a smaller model of the same vocabulary: it guesses tokens that the model then verifies.
    `adapters` are known to the engine by their places; their scales hold for requests that name none. With
    `by_request`, each request says which it is for.
    """

    draft: str | None = None
    adapters: tuple[Adapter, ...] = ()
    control_vectors: tuple[Adapter, ...] = ()
    by_request: bool = False

    def files(self) -> Iterator[str]:
        """Yield the paths of all files."""
        if self.draft is not None:
            yield self.draft
        yield from (each.path for each in (*self.adapters, *self.control_vectors))


ALONE: Final = Companions()
"""Of a model that has none."""


@dataclass(frozen=True, slots=True)
class RemotePart:
    """GPUs of another machine that are lent to an engine: by a program of this `version`, at `endpoint`.

    `authorities` are the certificates, as PEM, that vouch for the gate there; empty for the system's.
    """

    node: str
    version: str
    endpoint: Endpoint
    authorities: str = ""
