"""Errors of NVIDIA's cards as the driver reports them (Xid), through NVML's events."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from cotenant.hardware.gpus.nvml import Nvml

_LOG = logging.getLogger(__name__)
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
        nvml = Nvml(self._library)
        if nvml.attempt("Init")[1] is not None:
            return
        try:
            self._wait(nvml, report_in_loop)
        except (nvml.library.NVMLError, nvml.library.NVMLLibraryMismatchError) as error:
            _LOG.info("the driver's error events are not followed: %s", error)
        finally:
            nvml.ask("Shutdown")

    def _wait(self, nvml: Nvml, report_in_loop: Callable[[str, int], None]) -> None:
        library = nvml.library
        events = library.nvmlEventSetCreate()
        # The cards' names by bus id.
        labels: dict[str, str] = {}
        try:
            for index in range(library.nvmlDeviceGetCount()):
                try:
                    handle = library.nvmlDeviceGetHandleByIndex(index)
                    library.nvmlDeviceRegisterEvents(handle, library.nvmlEventTypeXidCriticalError, events)
                except library.NVMLError as error:
                    _LOG.debug("GPU %d: %s", index, error)
                    continue
                labels[_bus(nvml, handle)] = f"GPU {index} {nvml.name(handle)}"
            while labels and not self._stop.is_set():
                try:
                    event = library.nvmlEventSetWait_v2(events, 1000)  # milliseconds
                except library.NVMLError_Timeout:
                    continue
                report_in_loop(labels.get(_bus(nvml, event.device), "a GPU"), int(event.eventData))
        finally:
            nvml.ask("EventSetFree", events)


def _bus(nvml: Nvml, handle: Any) -> str:
    pci = nvml.ask("DeviceGetPciInfo", handle)
    return "" if pci is None else str(pci.busId)
