"""Refusals as the errors that clients get."""

from typing import Final

from cotenant.domain.errors import (
    CotenantError,
    DoesNotFit,
    EngineLoadFailed,
    QueueFull,
    ShuttingDown,
    UnknownModel,
    WaitTimeout,
)
from cotenant.domain.residencies import RefusalCode
from cotenant.scheduling.commands import Refuse

_FAULTS: Final[dict[RefusalCode, type[CotenantError]]] = {
    RefusalCode.DOES_NOT_FIT: DoesNotFit,
    RefusalCode.QUEUE_FULL: QueueFull,
    RefusalCode.TIMED_OUT: WaitTimeout,
    RefusalCode.STOPPING: ShuttingDown,
    RefusalCode.REMOVED: UnknownModel,
}


def fault_of(refusal: Refuse) -> CotenantError:
    """Return the error for a refusal; that of a failed load has the cause."""
    if refusal.code is RefusalCode.LOAD_FAILED:
        return EngineLoadFailed(refusal.text, retry_after_s=refusal.retry_after_s, cause=refusal.cause)
    return _FAULTS[refusal.code](refusal.text, retry_after_s=refusal.retry_after_s)
