"""The environment of an engine: what it needs, without variables that change its settings."""

from collections.abc import Mapping
from typing import Final

_FOREIGN: Final = ("LLAMA_", "GGML_", "MTMD_", "AIP_", "COTENANT_")
"""llama-server reads `LLAMA_ARG_*`, `LLAMA_API_KEY` and, as cloud runtimes set them, `AIP_*`."""


def scrubbed(ambient: Mapping[str, str]) -> dict[str, str]:
    """Return `ambient` without the variables that engines read or that belong to Cotenant."""
    return {name: value for name, value in ambient.items() if not name.startswith(_FOREIGN)}
