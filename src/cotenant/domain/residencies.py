"""A model on its devices, from the decision to load it until its bytes are seen back."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType

ResidencyId = NewType("ResidencyId", int)
LeaseId = NewType("LeaseId", int)
TicketId = NewType("TicketId", int)


class ResidencyState(StrEnum):
    """The state of a residency."""

    LOADING = "loading"
    READY = "ready"
    SUSPENDED = "suspended"
    """Its node does not answer: no lease is granted, and those that are out may end."""
    DRAINING = "draining"
    UNLOADING = "unloading"
    RECLAIMING = "reclaiming"


class UnloadReason(StrEnum):
    """Why a loaded or loading model is unloaded."""

    KEEP_ALIVE = "keep_alive"
    EVICTED = "evicted"
    OVERCOMMITTED = "overcommitted"
    DEVICE_LOST = "device_lost"
    OPERATOR = "operator"
    REMOVED = "removed"
    CHANGED = "changed"
    ENGINE_DIED = "engine_died"
    MOVED = "moved"
    SHUTDOWN = "shutdown"
    LEASE_ENDED = "lease_ended"


class RefusalCode(StrEnum):
    """Why a ticket ends without a grant."""

    DOES_NOT_FIT = "does_not_fit"
    LOAD_FAILED = "load_failed"
    QUEUE_FULL = "queue_full"
    TIMED_OUT = "timed_out"
    STOPPING = "stopping"
    REMOVED = "removed"


MAX_COPIES: Final = 64


@dataclass(frozen=True, slots=True)
class Copies:
    """How many copies of a model there are: `least` with the model, `most` while requests wait."""

    least: int = 1
    most: int = 1

    def __str__(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least} to {self.most}"


ONE_COPY: Final = Copies()


def copy_name(model: str, number: int) -> str:
    """Return the name of a copy, as operators see it; no model can have such a name."""
    return f"{model}#{number}"


def model_of(name: str) -> str:
    """Return the model of a copy by its name, and any other name as it is."""
    return name.partition("#")[0]
