"""Prints, as JSON, the embedded engine's version and the GPUs that it sees.

It runs in a short-lived child process: the query initialises every backend and takes memory on every GPU.
"""

import json

_GPU_TYPES = ("GPU", "IGPU")


def main() -> None:
    """Print one line; ImportError where the package or a library of it is missing."""
    import xllamacpp

    devices = [
        {
            "name": info["name"],
            "description": info["description"],
            "total_bytes": info["memory_total"],
            "free_bytes": info["memory_free"],
        }
        for info in xllamacpp.get_device_info()
        if str(info["type"].name).rpartition("_TYPE_")[2] in _GPU_TYPES
    ]
    print(json.dumps({"version": xllamacpp.__version__, "devices": devices}))  # noqa: T201  the parent reads it


if __name__ == "__main__":
    main()
