"""Queries to NVML that return an error of the driver instead of raising it."""

import logging
from importlib import import_module
from typing import Any

_log = logging.getLogger(__name__)


class Nvml:
    """The module `pynvml` as `library`, or its replacement in tests."""

    def __init__(self, replacement: Any = None) -> None:
        # Imported late: it takes 40 ms, which `--help` need not wait for.
        self.library = import_module("pynvml") if replacement is None else replacement

    def attempt(self, query: str, *arguments: Any) -> tuple[Any, Exception | None]:
        """Return the answer of the function `nvml<query>`, or None and why the driver refuses it."""
        nvml = self.library
        try:
            return getattr(nvml, f"nvml{query}")(*arguments), None
        # An old driver lacks the function (NVMLLibraryMismatchError is no NVMLError); a name cut in the
        # middle of a character does not decode.
        except (nvml.NVMLError, nvml.NVMLLibraryMismatchError, UnicodeDecodeError) as error:
            _log.debug("nvml%s: %s", query, error)
            return None, error

    def ask(self, query: str, *arguments: Any) -> Any:
        """Return the answer of the function `nvml<query>`, or None if the driver refuses it."""
        return self.attempt(query, *arguments)[0]

    def name(self, handle: Any) -> str:
        """Return a card's name."""
        return self.ask("DeviceGetName", handle) or "of unknown name"
