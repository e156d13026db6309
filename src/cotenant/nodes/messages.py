"""What the daemon and an agent say to each other: the bodies of calls, and events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cotenant.domain.devices import DeviceId, Inventory, MpsGroup, MpsMode
from cotenant.domain.engines import Endpoint, EngineBuild, EngineEnd, EngineReport, InstallOrder
from cotenant.domain.exit_causes import Cause, Lacking
from cotenant.interfaces import EngineOrder
from cotenant.nodes.file_messages import FileStatus
from cotenant.planning.compute_modes import Admission

PROTOCOL = 1
"""The version of these messages; an agent and a daemon of two versions do not talk to each other."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """A body without contents."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which agent this is: one for each machine, boot and fleet, whatever Ray calls the machine."""

    machine_id: str
    boot_id: str
    fleet: str
    name: str


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Where an agent lets requests in: an address of its machine, and a port, 0 for any free one.

    `certificate` and `key` are files on that machine, for TLS; both or none.
    """

    address: str
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class GateAddress:
    """Where an agent lets requests in; with TLS, by which `certificate` on its machine."""

    address: str
    port: int
    tls: bool = False
    certificate: Path | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """The first call of a daemon, and of each that begins anew.

    `epoch` is the daemon's number, higher than that of each before it. `lease_s` is how long engines go on
    without a daemon. `secrets` are values of the environment that no engine gets. `llama_server` is the
    daemon's program, for machines that have it at the same path and none of their own. A hello renews no
    lease: a `renew` with the stamp of its answer follows.
    """

    fleet: str
    epoch: int
    lease_s: float
    version: str
    protocol: int = PROTOCOL
    gate: GateSettings | None = None
    secrets: frozenset[str] = frozenset()
    llama_server: Path | None = None


class EngineState(StrEnum):
    """How far an agent's engine is."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """An engine that an agent runs, or ran: `order` as it was sent, `token` what the gate lets in to it.

    `endpoint` is where it listens on its own machine, and `log` its file there. One that has ended by itself
    has an `end`, or an `error` if it could not be loaded.
    """

    id: str
    order: EngineOrder
    state: EngineState
    token: str = field(default="", repr=False)
    pid: int | None = None
    endpoint: Endpoint | None = None
    build: EngineBuild | None = None
    report: EngineReport | None = None
    log: Path | None = None
    end: EngineEnd | None = None
    error: "ErrorBody | None" = None


@dataclass(frozen=True, slots=True)
class HelloAnswer:
    """What an agent is and has. `seq` is the number of its last event, `stamp` its CLOCK_BOOTTIME in seconds.

    `gate` is None if the hello named none. `unix_time_s` is its clock, to compare with ours.
    `problems` are what is wrong with the machine, in sentences. `ended` are the last engines that have ended
    by themselves. `logs` are when logs of models were last written there, in Unix seconds, by the names of
    their files.
    """

    identity: Identity
    version: str
    protocol: int
    reading: "ReadingTaken"
    engines: tuple[EngineStatus, ...]
    builds: tuple[EngineBuild, ...]
    seq: int
    stamp: float
    lease_left_s: float
    gate: GateAddress | None = None
    unix_time_s: float = 0.0
    problems: tuple[str, ...] = ()
    ended: tuple[EngineStatus, ...] = ()
    logs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Renew:
    """Extends the lease to `lease_s` after `stamp`, which is the one of the agent's last answer.

    `lease_s` and `gate` are as in a hello, and may be others than there; None: as they were.
    """

    epoch: int
    stamp: float
    lease_s: float | None = None
    gate: GateSettings | None = None


@dataclass(frozen=True, slots=True)
class Stamp:
    """The agent's CLOCK_BOOTTIME, in seconds, when it answered; `lease_left_s` is what is left then.

    `unix_time_s` is its clock, and `gate` where it lets requests in; `gate_problem` says why that is not as
    it was asked to.
    """

    stamp: float
    lease_left_s: float = 0.0
    unix_time_s: float | None = None
    gate: GateAddress | None = None
    gate_problem: str | None = None


@dataclass(frozen=True, slots=True)
class ShareCards:
    """How engines share cards of the machine through MPS, and how many models may use each card.

    `mode` and `group` take effect once no engine runs there. The answer comes with a new reading.
    """

    epoch: int
    mode: MpsMode
    group: MpsGroup
    wanting: Mapping[DeviceId, int]
    max_loaded: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Starts an engine; a second one of the same `id` starts nothing, and is answered as the first."""

    epoch: int
    id: str
    order: EngineOrder


@dataclass(frozen=True, slots=True)
class AwaitReady:
    """Gives an engine `timeout_s` to be ready: EngineBecameReady or EngineLeft follows."""

    epoch: int
    id: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Ends an engine: EngineLeft and EngineGone follow."""

    epoch: int
    id: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class Release:
    """The daemon stops properly: all engines end. Answered once they have."""

    epoch: int


@dataclass(frozen=True, slots=True)
class OfEngine:
    """Asks about one engine."""

    id: str


@dataclass(frozen=True, slots=True)
class BusySlots:
    """How many slots generate; None if unknown."""

    busy: int | None


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How much of its files an engine has read; None if unknown. `problem` is what it last answered."""

    read_bytes: int | None
    total_bytes: int | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What `cotenant doctor --json` prints on an agent's machine."""

    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InstallEngine:
    """Installs a build of llama.cpp. Unless it is a dry run, InstallProgress follows."""

    epoch: int
    order: InstallOrder


@dataclass(frozen=True, slots=True)
class InstallBegun:
    """The command that installs a build, as a user types it, and notes to read. `number` is its own."""

    command: str
    flavour: str
    notes: tuple[str, ...] = ()
    number: int = 0


@dataclass(frozen=True, slots=True)
class Poll:
    """Waits up to `wait_s` for events after number `after`, which acknowledges those up to it."""

    after: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """A CotenantError as it travels: `code` names its class."""

    code: str
    message: str
    hint: str = ""
    retry_after_s: float | None = None
    cause: Cause | None = None
    lacking: Lacking | None = None


@dataclass(frozen=True, slots=True)
class ReadingTaken:
    """The devices were measured. `engines` says whose the processes in it are, by pid.

    `admissions` are how many engines each device takes, where that is limited, and `warnings` are sentences
    about that. It is sent when memory changed by more than 64 MiB, when a process came or went, when other
    engines are admitted, and else every 10 s.
    """

    inventory: Inventory
    engines: Mapping[int, str] = field(default_factory=dict)
    admissions: Mapping[DeviceId, Admission] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seq: int = 0
    type: Literal["reading"] = "reading"


@dataclass(frozen=True, slots=True)
class EngineBecameReady:
    """An engine serves."""

    id: str
    endpoint: Endpoint
    report: EngineReport | None = None
    seq: int = 0
    type: Literal["engine_ready"] = "engine_ready"


@dataclass(frozen=True, slots=True)
class EngineLeft:
    """An engine's process has ended, with `end`; or it could not be loaded, with `error`."""

    id: str
    end: EngineEnd | None = None
    error: ErrorBody | None = None
    seq: int = 0
    type: Literal["engine_exited"] = "engine_exited"


@dataclass(frozen=True, slots=True)
class EngineGone:
    """Nothing of an engine is left on the machine, or the kernel holds it longer than we wait."""

    id: str
    seq: int = 0
    type: Literal["engine_gone"] = "engine_gone"


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How far a pull is; it is over when `done`, or with an `error`."""

    path: Path
    received_bytes: int
    size_bytes: int
    done: bool = False
    error: ErrorBody | None = None
    seq: int = 0
    type: Literal["file_progress"] = "file_progress"


@dataclass(frozen=True, slots=True)
class InstallProgress:
    """What the command of an install printed; it is over with a `build`, or with an `error`."""

    number: int = 0
    line: str = ""
    build: EngineBuild | None = None
    error: ErrorBody | None = None
    seq: int = 0
    type: Literal["install_progress"] = "install_progress"


@dataclass(frozen=True, slots=True)
class FilesSeen:
    """Those of the watched files that are not as they were last reported."""

    files: tuple[FileStatus, ...]
    seq: int = 0
    type: Literal["files"] = "files"


@dataclass(frozen=True, slots=True)
class FilesWarmed:
    """What Warm of this `number` did: `covered_bytes` of `total_bytes` are in RAM, `read_bytes` were read.

    `stopped` says why it ended early, if so.
    """

    number: int
    total_bytes: int = 0
    covered_bytes: int = 0
    read_bytes: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    seq: int = 0
    type: Literal["files_warmed"] = "files_warmed"


AgentEvent = Annotated[
    ReadingTaken
    | EngineBecameReady
    | EngineLeft
    | EngineGone
    | FileProgress
    | FilesSeen
    | FilesWarmed
    | InstallProgress,
    Field(discriminator="type"),
]


@dataclass(frozen=True, slots=True)
class Events:
    """Events in the order of their numbers. `lost` says that older ones were dropped: say hello again."""

    events: tuple[AgentEvent, ...]
    stamp: float
    lost: bool = False
