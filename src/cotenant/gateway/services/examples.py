"""Examples for the OpenAPI document: two GPUs and services. Those of responses are made when it is made."""

from functools import partial
from typing import Any, Final

from cotenant.domain.decisions import DeviceStatus
from cotenant.domain.devices import DeviceId
from cotenant.domain.units import MIB
from cotenant.gateway.services.schema import (
    ApplyResponse,
    HistoryResponse,
    StatusResponse,
    detect_response,
    gpus_response,
    preview_response,
    save_response,
)
from cotenant.services.model import (
    ApplyState,
    ApplyStatus,
    Assignment,
    AssignmentPlan,
    Change,
    ContainerState,
    ProgressState,
    SavedConfiguration,
    SeenDevice,
    ServiceDevice,
    ServiceProgress,
    ServicesView,
    ServiceWarning,
    Strategy,
    WarningKind,
)

_AT: Final = 1_737_628_200.0
_BIG_ID: Final = DeviceId("GPU-6e3d3dc5-7ab0-4b1b-8e56-0a5c3a2f5500")
_SMALL_ID: Final = DeviceId("GPU-1f0c2a44-51d2-4c0e-9b9a-2f60c1a00400")
_BIG_BYTES: Final = 24564 * MIB
_BIG_STATUS: Final = DeviceStatus(
    _BIG_ID,
    0,
    "RTX A5500",
    _BIG_BYTES,
    5260 * MIB,
    0,
    0,
    0,
    compute_capability="8.6",
    utilisation_percent=37.0,
)
_SMALL_STATUS: Final = DeviceStatus(
    _SMALL_ID,
    1,
    "RTX A400",
    4094 * MIB,
    3765 * MIB,
    0,
    0,
    0,
    compute_capability="8.6",
    utilisation_percent=0.0,
)
_ENRICHMENT: Final = Assignment("ai-enrichment", 1, _SMALL_ID, 3.5)
_WARNING: Final = ServiceWarning(
    WarningKind.BUDGET_EXCEEDS_GPU,
    "ai-enrichment VRAM budget (6.8 GB) exceeds GPU 1 (4 GB). Auto-adjusted to 3.5 GB.",
    "ai-enrichment",
    1,
)
_PLAN: Final = AssignmentPlan(Strategy.VRAM_BASED, (_ENRICHMENT,), (_WARNING,))
_PENDING: Final = ServiceProgress("ai-enrichment", ProgressState.PENDING, 1, "3f1c9a7be2d4")
_APPLY: Final = ApplyStatus(4, ApplyState.RUNNING, _AT, services=(_PENDING,))
_CONTAINER: Final = ContainerState("ai-enrichment", "3f1c9a7be2d4", running=True, healthy=True)
_SEEN: Final = SeenDevice(0, _BIG_ID, "RTX A5500", _BIG_BYTES, 5260 * MIB, "8.6", _AT)
_VIEW: Final = ServicesView((), (ServiceDevice(_BIG_ID, 0, "RTX A5500", _BIG_BYTES),), None, None)
_SAVED: Final = SavedConfiguration(4, _AT - 60, Strategy.VRAM_BASED, (_ENRICHMENT,), _APPLY)

SAVES: Final[dict[str, Any]] = {
    "by hand": {
        "strategy": "manual",
        "assignments": [
            {"service": "ai-llm", "gpu_index": 0},
            {"service": "ai-yolo26", "gpu_index": 0},
            {"service": "ai-enrichment", "gpu_index": 1, "vram_budget_override": 3.5},
        ],
    },
    "on all GPUs": {"strategy": "balanced", "assignments": [{"service": "ai-llm", "gpu_count": "all"}]},
}
GPUS: Final = partial(gpus_response, (_BIG_STATUS, _SMALL_STATUS))
SAVED: Final = partial(save_response, _PLAN)
PREVIEW: Final = partial(preview_response, _PLAN, (Change("ai-enrichment", None, _ENRICHMENT),))
APPLY: Final = partial(ApplyResponse.model_validate, _APPLY)
STATUS: Final = partial(StatusResponse.model_validate, {"apply": _APPLY, "containers": [_CONTAINER]})
DETECTED: Final = partial(detect_response, (_SEEN,), _VIEW)
HISTORY: Final = partial(HistoryResponse.model_validate, {"history": [_SAVED]})
