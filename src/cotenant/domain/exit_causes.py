"""Why an engine ended."""

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """What ended an engine. The values are labels of a metric: do not change them."""

    DEVICE_BUSY = "device_busy"
    GPU_MEMORY_LOADING = "gpu_memory_loading"
    GPU_MEMORY_RUNNING = "gpu_memory_running"
    CONTEXT_TOO_LARGE = "context_too_large"
    HOST_MEMORY = "host_memory"
    OOM_KILLED = "oom_killed"
    NO_SUCH_FILE = "no_such_file"
    PERMISSION_DENIED = "permission_denied"
    DISK_FULL = "disk_full"
    NOT_A_MODEL = "not_a_model"
    CORRUPT_MODEL = "corrupt_model"
    MODEL_MISMATCH = "model_mismatch"
    UNSUPPORTED_ARCHITECTURE = "unsupported_architecture"
    UNSUPPORTED_QUANTISATION = "unsupported_quantisation"
    REPOSITORY_REFUSED = "repository_refused"
    DRIVER_TOO_OLD = "driver_too_old"
    DRIVER_UNAVAILABLE = "driver_unavailable"
    NO_KERNEL_IMAGE = "no_kernel_image"
    CARD_TOO_OLD = "card_too_old"
    MPS_UNREACHABLE = "mps_unreachable"
    GPU_COMMUNICATION = "gpu_communication"
    HARDWARE_FAULT = "hardware_fault"
    GPU_FAULT = "gpu_fault"
    BAD_ARGUMENT = "bad_argument"
    PORT_IN_USE = "port_in_use"
    MISSING_LIBRARY = "missing_library"
    MISSING_PACKAGE = "missing_package"
    NOT_EXECUTABLE = "not_executable"
    ILLEGAL_INSTRUCTION = "illegal_instruction"
    INTERNAL_CHECK = "internal_check"
    MAPPED_FILE = "mapped_file"
    CRASHED = "crashed"
    KILLED = "killed"
    ENGINE_MISSING = "engine_missing"
    DEVICE_MISSING = "device_missing"
    UNTRUSTED_SERVER = "untrusted_server"
    KEY_REFUSED = "key_refused"
    LOAD_TIMEOUT = "load_timeout"
    DESCRIPTORS = "descriptors"
    HUNG = "hung"
    NODE_LOST = "node_lost"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Lacking:
    """An allocation that failed: its bytes, and the place of its device among those that the engine saw."""

    size_bytes: int
    device: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause, in words.

    `summary` continues "the engine could not be loaded: " and has no full stop. `evidence` are lines of the
    log, the most important one first. `remedy` is what to do, in whole sentences; a command in it that needs
    root is for the reader to run. `lacking` is an allocation that failed, if the log says its size.
    """

    cause: Cause
    summary: str
    evidence: tuple[str, ...] = ()
    remedy: str = ""
    lacking: Lacking | None = None

    @property
    def sentence(self) -> str:
        """The summary with its evidence in brackets."""
        return f"{self.summary} ({' | '.join(self.evidence)})" if self.evidence else self.summary
