"""One question to NVML, whose refusal is an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)


def nvml_library(stand_in: Any = None) -> Any:
    """Return the module `pynvml`, or what stands in for it."""
    if stand_in is not None:
        return stand_in
    # Late: the module takes 40 ms to load, which `--help` need not pay.
    import pynvml

    return pynvml


def attempt(nvml: Any, query: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """Return the answer, or None and why the driver refuses it."""
    try:
        return query(*arguments), None
    # An old driver lacks the function (NVMLLibraryMismatchError is no NVMLError); a name cut in the
    # middle of a character does not decode.
    except (nvml.NVMLError, nvml.NVMLLibraryMismatchError, UnicodeDecodeError) as error:
        _log.debug("%s: %s", getattr(query, "__name__", query), error)
        return None, error


def answer(nvml: Any, query: Callable[..., Any], *arguments: Any) -> Any:
    """Return the answer, or None where the driver refuses it."""
    return attempt(nvml, query, *arguments)[0]
