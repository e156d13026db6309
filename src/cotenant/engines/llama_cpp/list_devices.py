"""Prints, as JSON, the embedded engine's version and the GPUs that it sees.

A short-lived child, since asking initialises every backend and holds memory on every GPU until it ends.
"""

from __future__ import annotations

import json
from typing import Any

_GPU_TYPES = ("GPU", "IGPU")


def main() -> None:
    """Print one line; ImportError where the package or a library of it is missing."""
    import xllamacpp

    devices = [_described(info) for info in xllamacpp.get_device_info() if _is_gpu(info)]
    print(json.dumps({"version": xllamacpp.__version__, "devices": devices}))  # noqa: T201  its whole purpose


def _is_gpu(info: dict[str, Any]) -> bool:
    return str(info["type"].name).rpartition("_TYPE_")[2] in _GPU_TYPES


def _described(info: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": info["name"],
        "description": info["description"],
        "total_bytes": info["memory_total"],
        "free_bytes": info["memory_free"],
    }


if __name__ == "__main__":
    main()
