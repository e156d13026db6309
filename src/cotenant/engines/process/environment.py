"""The environment of an engine: what it needs, without variables that change its settings."""

from collections.abc import Mapping, Sequence
from typing import Final

from cotenant.domain.devices import Device, launch_environment

_FOREIGN: Final = ("LLAMA_", "GGML_", "MTMD_", "AIP_", "COTENANT_")
"""llama-server reads `LLAMA_ARG_*`, `LLAMA_API_KEY` and, as cloud runtimes set them, `AIP_*`."""


def engine_environment(
    ambient: Mapping[str, str], devices: Sequence[Device], extra: Mapping[str, str]
) -> dict[str, str]:
    """Return `ambient` without engines' settings, with only `devices` visible, and with `extra`."""
    # Otherwise an abort starts a debugger on the engine, whose output hides the reason.
    return {**scrubbed(ambient), "GGML_NO_BACKTRACE": "1", **launch_environment(devices), **extra}


def scrubbed(ambient: Mapping[str, str]) -> dict[str, str]:
    """Return `ambient` without the variables that engines read or that belong to Cotenant."""
    return {name: value for name, value in ambient.items() if not name.startswith(_FOREIGN)}
