"""Every exception that Cotenant raises.

Expected refusals of the planner are values (`placements.Refusal`), not exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from cotenant.domain.exit_causes import Cause, Lacking


class CotenantError(Exception):
    """A fault with a stable `code`, a message that says what happened and a hint that says what to do.

    The code is the class's name in small letters, unless the class states another: clients compare it.
    `retry_after_s` is when another attempt may succeed, if that is known.
    """

    code: ClassVar[str] = "error"

    def __init_subclass__(cls) -> None:
        if "code" not in vars(cls):
            cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__.removesuffix("Error")).lower()

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s


class UsageError(CotenantError):
    """The caller asked for something impossible."""


class BadQuantity(UsageError):
    """Bytes or a duration that do not parse."""


class BadDeviceSpec(UsageError):
    """A description of GPUs (`--gpus`) that does not parse."""


class UnknownDevice(UsageError):
    """A device filter (`--devices`) names no device."""


class UnknownNode(UsageError):
    """A name that no machine of the fleet has."""


class BadRecipe(UsageError):
    """A recipe value that is out of range or contradicts another."""


class BadSplit(UsageError):
    """A manual split (`--tensor-split`) that does not match the devices or the layers."""


class BadSetting(UsageError):
    """An environment variable or a setting of the daemon that cannot be used.

    The message is the first problem of a configuration; `problems` are all of them, one line each.
    `partial` is the configuration without what is wrong with it, None if it cannot be used at all.
    """

    def __init__(self, message: str, *, hint: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems or (message,)
        self.partial: Any = None


class BadHubName(UsageError):
    """A name that is not the name of a model on a hub."""


class BadTrace(UsageError):
    """A recorded workload that does not parse; the message names the line."""


class InsecureBind(UsageError):
    """A public address without a key."""


class PortTaken(UsageError):
    """The address is in use."""


class ModelFileError(CotenantError):
    """The model file cannot be used."""


class ModelFileMissing(ModelFileError):
    """The file does not exist, is a directory, or may not be read."""


class NotAModelFile(ModelFileError):
    """Something else than GGUF or safetensors."""


class CorruptModelFile(ModelFileError):
    """Damaged, truncated or hostile."""


class SplitPartMissing(ModelFileError):
    """A part of a split file is missing, or a later part was given instead of the first."""


class UnsupportedModelFile(ModelFileError):
    """A valid file of a kind that cannot be planned or served."""


class DoesNotFit(CotenantError):
    """A planner's Refusal, carried where only an exception can pass."""


class CannotMove(CotenantError):
    """A model does not move to other devices, or has not moved."""


class StoreError(CotenantError):
    """The database of past runs cannot be used."""


class DaemonSilent(CotenantError):
    """No daemon answers at the address given to a command."""


class UnitFault(CotenantError):
    """A systemd unit cannot be written, removed or announced to systemd."""


class MpsError(CotenantError):
    """A fault of CUDA's Multi-Process Service, through which several processes share a card."""


class MpsMissing(MpsError):
    """This machine has no control program for it."""


class MpsFailed(MpsError):
    """A control daemon cannot be started, queried or stopped."""


class HubError(CotenantError):
    """A fault of fetching a model from a hub."""


class HubSilent(HubError):
    """The hub cannot be reached, or answers nonsense."""


class NotOnHub(HubError):
    """The repository or file does not exist, or access is denied."""


class NoRoomOnDisk(HubError):
    """The files are larger than the free space on the disk."""


class PullFailed(HubError):
    """The received file is not the expected one, or cannot be written."""


class ServiceError(CotenantError):
    """A fault of the containers that are pinned to GPUs, or of the files that pin them."""


class ComposeFileError(ServiceError):
    """A compose file is missing or cannot be read."""


class ContainerEngineMissing(ServiceError):
    """No compose command works on this machine."""


class GeneratedFileEdited(ServiceError):
    """Somebody changed a generated file since it was written."""


class GeneratedFileFailed(ServiceError):
    """A generated file cannot be written."""


class EngineError(CotenantError):
    """A fault of the process that runs a model.

    `cause` is the diagnosed cause, `lacking` an allocation that failed, if its size is known.
    """

    usual_cause: ClassVar[Cause] = Cause.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retry_after_s: float | None = None,
        cause: Cause | None = None,
        lacking: Lacking | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.cause = self.usual_cause if cause is None else cause
        self.lacking = lacking


class EngineMissing(EngineError):
    """No engine can be started on this machine."""

    usual_cause = Cause.ENGINE_MISSING


class EngineLacksDevice(EngineError):
    """The engine's build cannot use the planned device."""

    usual_cause = Cause.DEVICE_MISSING


class EngineLoadFailed(EngineError):
    """The engine died or reported an error while loading."""


class EngineLoadTimeout(EngineError):
    """The engine never became ready."""

    usual_cause = Cause.LOAD_TIMEOUT


class EngineDied(EngineError):
    """The engine died after it was ready."""


class EngineHung(EngineDied):
    """The engine answered no longer and was killed."""

    usual_cause = Cause.HUNG


class EngineInstallFailed(EngineError):
    """The package installer could not install a build."""


class RequestError(CotenantError):
    """A fault of one request."""


class BadRequest(RequestError):
    """A malformed request."""


class RequestTooLarge(RequestError):
    """A body over the limit."""


class HeadersTooLarge(RequestError):
    """Headers over the limit, in bytes or in number."""


class UnsupportedMediaType(RequestError):
    """A body whose content type is not JSON."""


class Unauthorized(RequestError):
    """No key, or a wrong one."""


class Forbidden(RequestError):
    """The key may not do this."""


class TooManyAttempts(RequestError):
    """Too many wrong keys in a short time."""


class ForeignPage(RequestError):
    """A command from a web page of another site, or without the token of its session."""


class UntrustedHost(RequestError):
    """A request for a host name that is not known as a name of this machine."""


class HeaderIncomplete(RequestError):
    """The start of a model file without its whole header; the client must send `needed_bytes` next."""

    def __init__(self, message: str, *, hint: str = "", needed_bytes: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.needed_bytes = needed_bytes


class HeaderGone(RequestError):
    """A header that was sent before and is no longer stored."""


class BadAssignment(RequestError):
    """An invalid body; `field` is its first wrong one, as `assignments[1].gpu_index`, `faults` are all."""

    def __init__(self, message: str, *, hint: str = "", field: str = "assignments") -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.faults: tuple[BadAssignment, ...] = (self,)

    @classmethod
    def of(cls, *faults: BadAssignment) -> BadAssignment:
        """Join the faults of one body; the message names the fields of the first 20."""
        texts = [f"{each.field}: {each.message.removeprefix(f'{each.field}: ')}" for each in faults[:20]]
        texts += [f"and {len(faults) - 20} more"] if len(faults) > 20 else []
        hint = " ".join(dict.fromkeys(each.hint for each in faults[:20]))
        joined = faults[0] if len(faults) == 1 else cls("; ".join(texts), hint=hint, field=faults[0].field)
        joined.faults = faults
        return joined


class ApplyRunning(RequestError):
    """An apply is running already; only one may run at a time."""


class NothingToRollBack(RequestError):
    """No earlier configuration was applied."""


class UnknownModel(RequestError):
    """The name is not served."""

    code = "model_not_found"

    @classmethod
    def among(cls, name: str, served: Iterable[str]) -> UnknownModel:
        """Return the error that lists the names that are served."""
        names = ", ".join(served)
        hint = f"Served: {names}." if names else "No model is served."
        return cls(f"the model {name!r} is not served here", hint=hint)


class UnknownLease(RequestError):
    """No lease has this name, or it has ended."""

    code = "unknown_lease"


class UnknownKey(RequestError):
    """No API key has this name."""

    code = "unknown_key"


class WrongKind(RequestError):
    """The kind of the model does not support this request: an embedding model cannot chat."""


class NotOffered(RequestError):
    """A part of an API that the gateway, or the engine of the model, does not support."""


class UnknownRoute(RequestError):
    """No such path."""


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""


class QueueFull(RequestError):
    """Too many requests wait already."""


class QuotaExceeded(RequestError):
    """The key has used what it may."""


class WaitTimeout(RequestError):
    """The request got no slot before its timeout."""


class CrashesEngine(RequestError):
    """The engine crashed each time that it was asked this request."""


class ModelUnloaded(RequestError):
    """The operator unloaded the model, and the request had not ended in the grace."""


class AnswerTimeout(RequestError):
    """The engine was silent, or its answer took, longer than allowed."""


class UpstreamFailed(RequestError):
    """The engine broke the connection or sent something that is not HTTP."""


class TooManyConnections(RequestError):
    """As many connections as may be open are all in use."""


class ShuttingDown(RequestError):
    """The daemon stops before the answer is complete."""
