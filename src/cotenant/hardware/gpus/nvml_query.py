"""Queries to NVML that return an error of the driver instead of raising it."""

import logging
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)


def nvml_library(replacement: Any = None) -> Any:
    """Return the module `pynvml`, or its replacement in tests."""
    if replacement is not None:
        return replacement
    # Imported late: it takes 40 ms, which `--help` need not wait for.
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
    """Return the answer, or None if the driver refuses it."""
    return attempt(nvml, query, *arguments)[0]
