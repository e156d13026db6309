"""The environment of an engine: what it needs and nothing that would steer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cotenant.domain.devices import Device, launch_environment

_FOREIGN: Final = ("LLAMA_", "GGML_", "MTMD_", "AIP_", "COTENANT_")
"""llama-server obeys `LLAMA_ARG_*`, `LLAMA_API_KEY` and, as cloud runtimes set them, `AIP_*`."""


def engine_environment(
    ambient: Mapping[str, str], devices: Sequence[Device], extra: Mapping[str, str]
) -> dict[str, str]:
    """Return `ambient` without what steers engines, with `devices` alone visible, then `extra`."""
    # Without it an abort starts a debugger on the dying engine and hides the reason in its output.
    return {**scrubbed(ambient), "GGML_NO_BACKTRACE": "1", **launch_environment(devices), **extra}


def scrubbed(ambient: Mapping[str, str]) -> dict[str, str]:
    """Return `ambient` without the variables that engines read or that belong to Cotenant."""
    return {name: value for name, value in ambient.items() if not name.startswith(_FOREIGN)}
