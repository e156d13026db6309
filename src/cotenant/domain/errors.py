"""Every exception that Cotenant raises.

CotenantError
├── UsageError                 a wrong call or setting
│   ├── BadQuantity            bytes or a duration that do not parse
│   ├── BadDeviceSpec          --gpus
│   ├── UnknownDevice          --devices names no device
│   ├── BadRecipe              a recipe value out of range or at odds with another
│   ├── BadSplit               --tensor-split does not fit devices or layers
│   ├── BadSetting             an environment variable or a setting of the daemon
│   ├── BadHubName             a name that is not one of a hub's models
│   ├── BadTrace               a recorded workload that does not parse
│   ├── InsecureBind           a public address without a key
│   └── PortTaken              the address is in use
├── ModelFileError             the model file cannot be used
│   ├── ModelFileMissing       no such file, a directory, or unreadable
│   ├── NotAModelFile          not GGUF or safetensors
│   ├── CorruptModelFile       damaged, truncated or hostile
│   ├── SplitPartMissing       a part of a split file is absent
│   └── UnsupportedModelFile   sound, but nothing that can be planned or served
├── DoesNotFit                 a Refusal, where a value cannot be returned
├── StoreError                 the database of past runs cannot be used
├── DaemonSilent               no daemon answers at the address
├── UnitFault                  a systemd unit that cannot be written, removed or shown
├── MpsError                   a fault of CUDA's Multi-Process Service
│   ├── MpsMissing             this machine has no control program
│   └── MpsFailed              a control daemon cannot be started, asked or stopped
├── HubError                   a fault of fetching a model from a hub
│   ├── HubSilent              it cannot be reached, or answers with something else
│   ├── NotOnHub               no such repository or file, or no permission
│   ├── NoRoomOnDisk           the files are larger than the free space
│   └── PullFailed             the file differs from what the hub says, or cannot be written
├── ServiceError               a fault of containers that are assigned to GPUs
│   ├── ComposeFileError       a compose file that is missing or cannot be read
│   ├── ContainerEngineMissing no compose command works on this machine
│   ├── GeneratedFileEdited    a generated file was edited by hand
│   └── GeneratedFileFailed    a generated file cannot be written
├── EngineError                a fault of the process that runs a model
│   ├── EngineMissing          no engine can be started on this machine
│   ├── EngineLacksDevice      the engine's build cannot use the planned device
│   ├── EngineLoadFailed       died or complained while loading
│   ├── EngineLoadTimeout      never became ready
│   ├── EngineDied             died after it was ready
│   └── EngineInstallFailed    pip could not install a build
└── RequestError               a fault of one request
    ├── BadRequest             malformed
    ├── RequestTooLarge        over the body limit
    ├── HeadersTooLarge        over the limit on headers
    ├── UnsupportedMediaType   a body whose type is not JSON
    ├── Unauthorized           no key or a wrong one
    ├── TooManyAttempts        too many wrong keys in a short time
    ├── ForeignPage            a change asked by another site's page
    ├── UntrustedHost          a host name that anyone may point here
    ├── HeaderIncomplete       the beginning of a model file without its whole header
    ├── HeaderGone             a header that is no longer kept
    ├── BadAssignment          an impossible service, GPU or budget
    ├── ApplyRunning           one apply at a time
    ├── NothingToRollBack      no earlier configuration was applied
    ├── UnknownModel           the name is not served
    ├── WrongKind              a model of this kind does not answer this
    ├── NotOffered             neither the gateway nor the model's engine offers it
    ├── UnknownRoute           no such path
    ├── MethodNotAllowed       the path exists, the method does not
    ├── QueueFull              too many wait already
    ├── WaitTimeout            waited its full time for a slot
    ├── UpstreamFailed         the engine broke the connection
    └── ShuttingDown           the daemon ends before the answer does

Expected refusals of the planner are values (`placements.Refusal`), not exceptions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from cotenant.domain.exit_causes import Cause


class CotenantError(Exception):
    """A fault with a stable `code`, a message that says what happened and a hint that says what to do.

    `retry_after_s` is when another attempt may succeed, if that is known.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s


class UsageError(CotenantError):
    """The caller asked for something impossible."""

    code = "usage"


class BadQuantity(UsageError):
    """Bytes or a duration that do not parse."""

    code = "bad_quantity"


class BadDeviceSpec(UsageError):
    """A description of GPUs (`--gpus`) that does not parse."""

    code = "bad_device_spec"


class UnknownDevice(UsageError):
    """A device filter (`--devices`) names no device."""

    code = "unknown_device"


class BadRecipe(UsageError):
    """A recipe value that is out of range or contradicts another."""

    code = "bad_recipe"


class BadSplit(UsageError):
    """A manual split (`--tensor-split`) that does not match the devices or the layers."""

    code = "bad_split"


class BadSetting(UsageError):
    """An environment variable or a setting of the daemon that cannot be used.

    The message is the first problem of a configuration; `problems` are all of them, one line each.
    """

    code = "bad_setting"

    def __init__(self, message: str, *, hint: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems or (message,)


class BadHubName(UsageError):
    """A name that is not the name of a model on a hub."""

    code = "bad_hub_name"


class BadTrace(UsageError):
    """A recorded workload that does not parse; the message names the line."""

    code = "bad_trace"


class InsecureBind(UsageError):
    """A public address without a key."""

    code = "insecure_bind"


class PortTaken(UsageError):
    """The address is in use."""

    code = "port_taken"


class ModelFileError(CotenantError):
    """The model file cannot be used."""

    code = "model_file"


class ModelFileMissing(ModelFileError):
    """The file does not exist, is a directory, or may not be read."""

    code = "model_file_missing"


class NotAModelFile(ModelFileError):
    """Something else than GGUF or safetensors."""

    code = "not_a_model_file"


class CorruptModelFile(ModelFileError):
    """Damaged, truncated or hostile."""

    code = "corrupt_model_file"


class SplitPartMissing(ModelFileError):
    """A part of a split file is missing, or a later part was given instead of the first."""

    code = "split_part_missing"


class UnsupportedModelFile(ModelFileError):
    """A valid file of a kind that cannot be planned or served."""

    code = "unsupported_model_file"


class DoesNotFit(CotenantError):
    """A planner's Refusal, carried where only an exception can pass."""

    code = "does_not_fit"


class StoreError(CotenantError):
    """The database of past runs cannot be used."""

    code = "store"


class DaemonSilent(CotenantError):
    """No daemon answers at the address given to a command."""

    code = "daemon_silent"


class UnitFault(CotenantError):
    """A systemd unit cannot be written, removed or announced to systemd."""

    code = "unit_fault"


class MpsError(CotenantError):
    """A fault of CUDA's Multi-Process Service, through which several processes share a card."""

    code = "mps"


class MpsMissing(MpsError):
    """This machine has no control program for it."""

    code = "mps_missing"


class MpsFailed(MpsError):
    """A control daemon cannot be started, queried or stopped."""

    code = "mps_failed"


class HubError(CotenantError):
    """A fault of fetching a model from a hub."""

    code = "hub"


class HubSilent(HubError):
    """The hub cannot be reached, or answers nonsense."""

    code = "hub_silent"


class NotOnHub(HubError):
    """The repository or file does not exist, or access is denied."""

    code = "not_on_hub"


class NoRoomOnDisk(HubError):
    """The files are larger than the free space on the disk."""

    code = "no_room_on_disk"


class PullFailed(HubError):
    """The received file is not the expected one, or cannot be written."""

    code = "pull_failed"


class ServiceError(CotenantError):
    """A fault of the containers that are pinned to GPUs, or of the files that pin them."""

    code = "service"


class ComposeFileError(ServiceError):
    """A compose file is missing or cannot be read."""

    code = "compose_file"


class ContainerEngineMissing(ServiceError):
    """No compose command works on this machine."""

    code = "container_engine_missing"


class GeneratedFileEdited(ServiceError):
    """Somebody changed a generated file since it was written."""

    code = "generated_file_edited"


class GeneratedFileFailed(ServiceError):
    """A generated file cannot be written."""

    code = "generated_file_failed"


class EngineError(CotenantError):
    """A fault of the process that runs a model; `cause` is the diagnosed cause."""

    code = "engine"
    usual_cause: ClassVar[Cause] = Cause.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retry_after_s: float | None = None,
        cause: Cause | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.cause = self.usual_cause if cause is None else cause


class EngineMissing(EngineError):
    """No engine can be started on this machine."""

    code = "engine_missing"
    usual_cause = Cause.ENGINE_MISSING


class EngineLacksDevice(EngineError):
    """The engine's build cannot use the planned device."""

    code = "engine_lacks_device"
    usual_cause = Cause.DEVICE_MISSING


class EngineLoadFailed(EngineError):
    """The engine died or reported an error while loading."""

    code = "engine_load_failed"


class EngineLoadTimeout(EngineError):
    """The engine never became ready."""

    code = "engine_load_timeout"
    usual_cause = Cause.LOAD_TIMEOUT


class EngineDied(EngineError):
    """The engine died after it was ready."""

    code = "engine_died"


class EngineInstallFailed(EngineError):
    """The package installer could not install a build."""

    code = "engine_install_failed"


class RequestError(CotenantError):
    """A fault of one request."""

    code = "request"


class BadRequest(RequestError):
    """A malformed request."""

    code = "bad_request"


class RequestTooLarge(RequestError):
    """A body over the limit."""

    code = "request_too_large"


class HeadersTooLarge(RequestError):
    """Headers over the limit, in bytes or in number."""

    code = "headers_too_large"


class UnsupportedMediaType(RequestError):
    """A body whose content type is not JSON."""

    code = "unsupported_media_type"


class Unauthorized(RequestError):
    """No key, or a wrong one."""

    code = "unauthorized"


class TooManyAttempts(RequestError):
    """Too many wrong keys in a short time."""

    code = "too_many_attempts"


class ForeignPage(RequestError):
    """A command from a web page of another site, or without the token of its session."""

    code = "foreign_page"


class UntrustedHost(RequestError):
    """A request for a host name that is not known as a name of this machine."""

    code = "untrusted_host"


class HeaderIncomplete(RequestError):
    """The start of a model file without its whole header; the client must send `needed_bytes` next."""

    code = "header_incomplete"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retry_after_s: float | None = None,
        needed_bytes: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.needed_bytes = needed_bytes


class HeaderGone(RequestError):
    """A header that was sent before and is no longer stored."""

    code = "header_gone"


class BadAssignment(RequestError):
    """An invalid assignment; `field` names the wrong field, such as `assignments[1].gpu_index`."""

    code = "bad_assignment"

    def __init__(self, message: str, *, hint: str = "", field: str = "assignments") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class ApplyRunning(RequestError):
    """An apply is running already; only one may run at a time."""

    code = "apply_running"


class NothingToRollBack(RequestError):
    """No earlier configuration was applied."""

    code = "nothing_to_roll_back"


class UnknownModel(RequestError):
    """The name is not served."""

    code = "model_not_found"

    @classmethod
    def among(cls, name: str, served: Iterable[str]) -> UnknownModel:
        """Return the error that lists the names that are served."""
        names = ", ".join(served)
        hint = f"Served: {names}." if names else "No model is served."
        return cls(f"the model {name!r} is not served here", hint=hint)


class WrongKind(RequestError):
    """The kind of the model does not support this request: an embedding model cannot chat."""

    code = "wrong_kind"


class NotOffered(RequestError):
    """A part of an API that the gateway, or the engine of the model, does not support."""

    code = "not_offered"


class UnknownRoute(RequestError):
    """No such path."""

    code = "unknown_route"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    code = "method_not_allowed"


class QueueFull(RequestError):
    """Too many requests wait already."""

    code = "queue_full"


class WaitTimeout(RequestError):
    """The request got no slot before its timeout."""

    code = "wait_timeout"


class UpstreamFailed(RequestError):
    """The engine broke the connection or sent something that is not HTTP."""

    code = "upstream_failed"


class ShuttingDown(RequestError):
    """The daemon stops before the answer is complete."""

    code = "shutting_down"
