"""Errors of NVIDIA's cards as the driver reports them (Xid), through NVML's events."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from cotenant.hardware.gpus.nvml_query import answer, nvml_library

_LOG = logging.getLogger(__name__)
_WAIT_MS: Final = 1000
_MEANINGS: Final = {
    13: "graphics engine exception: mostly a fault of the program",
    31: "memory page fault: mostly a fault of the program",
    43: "the program's work was stopped, the card goes on",
    45: "the program's work was removed, often after another error",
    48: "double-bit ECC error: the card should be reset",
    61: "microcontroller halted: the card must be reset",
    62: "microcontroller halted: the card must be reset",
    63: "a memory row is being remapped: reset the card when it is idle",
    64: "a memory row could not be remapped: the card should be replaced",
    74: "NVLink error",
    79: "the card has fallen off the bus: power, heat or the slot; the machine must be restarted",
    92: "many single-bit ECC errors",
    94: "contained memory error: the program that met it must be restarted",
    95: "uncontained memory error: the card must be reset",
    119: "the card's system processor does not answer",
    120: "the card's system processor has failed",
    140: "unrecovered ECC error: the card must be reset",
}
"""The common codes, by NVIDIA's catalogue of Xid errors."""


def xid_text(label: str, code: int) -> str:
    """Return what an Xid code means, for display."""
    return f"{label}: Xid {code}, {_MEANINGS.get(code, 'see `dmesg` and the catalogue of Xid errors')}"


class XidWatch:
    """Waits in a thread for the driver to report errors, and reports each in the event loop's thread.

    Waiting costs nothing: the driver wakes the thread. If the driver has no error events (as for vGPUs, and
    in some containers), nothing is reported. Tests replace `library`, the module `pynvml`.
    """

    def __init__(self, report: Callable[[str, str], None], library: Any = None) -> None:
        self._report = report
        self._library = library
        self._stop = threading.Event()

    async def run(self) -> None:
        """Wait for errors until cancelled."""
        loop = asyncio.get_running_loop()

        def report_in_loop(label: str, code: int) -> None:
            try:
                loop.call_soon_threadsafe(self._report, label, xid_text(label, code))
            except RuntimeError:
                # The loop has ended while the driver was waited for.
                self._stop.set()

        done = asyncio.Event()

        def watch() -> None:
            try:
                self._watch(report_in_loop)
            finally:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(done.set)

        # Not a thread of the pool, which is waited for at the end, and in which others wait for their turn.
        threading.Thread(target=watch, name="xid", daemon=True).start()
        try:
            await done.wait()
        finally:
            self._stop.set()

    def _watch(self, report_in_loop: Callable[[str, int], None]) -> None:
        nvml = nvml_library(self._library)
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return
        try:
            self._wait(nvml, report_in_loop)
        except (nvml.NVMLError, nvml.NVMLLibraryMismatchError) as error:
            _LOG.info("the driver's error events are not followed: %s", error)
        finally:
            answer(nvml, nvml.nvmlShutdown)

    def _wait(self, nvml: Any, report_in_loop: Callable[[str, int], None]) -> None:
        events = nvml.nvmlEventSetCreate()
        try:
            labels = self._register(nvml, events)
            while labels and not self._stop.is_set():
                try:
                    event = nvml.nvmlEventSetWait_v2(events, _WAIT_MS)
                except nvml.NVMLError_Timeout:
                    continue
                pci = answer(nvml, nvml.nvmlDeviceGetPciInfo, event.device)
                report_in_loop(labels.get(_bus(pci), "a GPU"), int(event.eventData))
        finally:
            answer(nvml, nvml.nvmlEventSetFree, events)

    def _register(self, nvml: Any, events: Any) -> dict[str, str]:
        """Ask for the errors of every card; return their names by bus id."""
        labels: dict[str, str] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
            except nvml.NVMLError as error:
                _LOG.debug("GPU %d: %s", index, error)
                continue
            name = answer(nvml, nvml.nvmlDeviceGetName, handle) or "of unknown name"
            bus = _bus(answer(nvml, nvml.nvmlDeviceGetPciInfo, handle))
            labels[bus] = f"GPU {index} {name}"
        return labels


def _bus(pci: Any) -> str:
    return "" if pci is None else str(pci.busId)
