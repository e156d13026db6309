"""Examples for the OpenAPI document: two GPUs and services."""

from typing import Any, Final

GPUS: Final = {
    "gpus": [
        {
            "index": 0,
            "name": "RTX A5500",
            "vram_total_mb": 24564,
            "vram_used_mb": 19304,
            "compute_capability": "8.6",
            "uuid": "GPU-6e3d3dc5-7ab0-4b1b-8e56-0a5c3a2f5500",
            "utilisation_percent": 37.0,
        },
        {
            "index": 1,
            "name": "RTX A400",
            "vram_total_mb": 4094,
            "vram_used_mb": 329,
            "compute_capability": "8.6",
            "uuid": "GPU-1f0c2a44-51d2-4c0e-9b9a-2f60c1a00400",
            "utilisation_percent": 0.0,
        },
    ],
    "problems": [],
}

SAVES: Final[dict[str, Any]] = {
    "by hand": {
        "strategy": "manual",
        "assignments": [
            {"service": "ai-llm", "gpu_index": 0},
            {"service": "ai-yolo26", "gpu_index": 0},
            {"service": "ai-enrichment", "gpu_index": 1, "vram_budget_override": 3.5},
        ],
    },
    "by a strategy": {"strategy": "vram_based"},
}

_WARNING: Final = "ai-enrichment VRAM budget (6.8 GB) exceeds GPU 1 (4 GB). Auto-adjusted to 3.5 GB."
_DETAILS: Final = [
    {"kind": "budget_exceeds_gpu", "text": _WARNING, "service": "ai-enrichment", "gpu_index": 1}
]
_ENRICHMENT: Final = {
    "service": "ai-enrichment",
    "gpu_index": 1,
    "gpu_uuid": "GPU-1f0c2a44-51d2-4c0e-9b9a-2f60c1a00400",
    "vram_budget_override": 3.5,
}

SAVED: Final = {
    "success": True,
    "warnings": [_WARNING],
    "warning_details": _DETAILS,
    "strategy": "vram_based",
    "assignments": [_ENRICHMENT],
}

PREVIEW: Final = {
    "strategy": "vram_based",
    "assignments": [_ENRICHMENT],
    "warnings": [_WARNING],
    "warning_details": _DETAILS,
    "diff": [{"service": "ai-enrichment", "before": None, "after": _ENRICHMENT}],
}

APPLY: Final = {
    "number": 4,
    "state": "running",
    "running": True,
    "started_at": "2025-01-23T10:30:00Z",
    "finished_at": None,
    "message": None,
    "services": [
        {
            "service": "ai-enrichment",
            "state": "pending",
            "gpu_index": 1,
            "container_id": "3f1c9a7be2d4",
            "message": None,
        }
    ],
}

STATUS: Final = {
    "apply": APPLY,
    "containers": [
        {
            "service": "ai-enrichment",
            "container_id": "3f1c9a7be2d4",
            "running": True,
            "healthy": True,
            "assignment": None,
        }
    ],
}

DETECTED: Final = {
    "gpus": [
        {
            "index": 0,
            "name": "RTX A5500",
            "uuid": "GPU-6e3d3dc5-7ab0-4b1b-8e56-0a5c3a2f5500",
            "vram_total_mb": 24564,
            "vram_available_mb": 5260,
            "compute_capability": "8.6",
            "last_seen_at": "2025-01-23T10:30:00Z",
            "present": True,
        }
    ],
    "problems": [],
}

HISTORY: Final = {
    "history": [
        {
            "number": 4,
            "saved_at": "2025-01-23T10:29:00Z",
            "strategy": "vram_based",
            "assignments": [_ENRICHMENT],
            "apply": APPLY,
        }
    ]
}
