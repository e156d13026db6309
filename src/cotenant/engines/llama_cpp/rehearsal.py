"""llama.cpp's own estimate of a load's memory, without loading."""

import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from cotenant.domain.engines import EngineBuild, EngineReport, ReportedDevice
from cotenant.domain.errors import EngineLoadFailed, EngineLoadTimeout
from cotenant.domain.models import Parts
from cotenant.domain.units import MIB, format_duration
from cotenant.engines.diagnosis.diagnosis import diagnose
from cotenant.engines.launch.plan import host_command, visible_devices
from cotenant.engines.llama_cpp.arguments import arguments_for
from cotenant.engines.llama_cpp.engine import llama_plan
from cotenant.engines.llama_cpp.host_facts import read_host_facts
from cotenant.engines.llama_cpp.report import compute_bytes
from cotenant.engines.process.process import guarded
from cotenant.interfaces import EngineOrder

DEFAULT_TIMEOUT_S: Final = 60.0

_TRACE_VERBOSITY: Final = 5
_ANY_PORT: Final = 0
_TABLE: Final = "memory breakdown [MiB]"
_FITTED: Final = re.compile(r"_fit\w*: (?:successfully|failed|encountered)")
"""What follows the tables: an older engine prints none of a draft."""
_ROW: Final = re.compile(
    r"\|\s+- (?P<name>\S+)(?: \(.*\))?\s*\|.*?(?P<model>\d+) \+ +(?P<context>\d+) \+ +(?P<compute>\d+)\b"
)


def rehearse(build: EngineBuild, order: EngineOrder, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> EngineReport:
    """Run llama.cpp's no-allocation pass for an order, 0.1 to 1 s, and end it before it loads anything.

    llama.cpp prints the sums for the layers and split *as given* before it fits them, so the report is of
    this placement. Weights and kv come from its table, cut to whole MiB; compute from its buffer lines, to
    0.01 MiB. Devices are in planned order. A draft has a table of its own, which is added. A projector is
    left out, since the engine would load it. Described GPUs do not exist: a placement on them is rehearsed in
    host RAM, and the report has only that row. Raises EngineMissing, EngineLoadFailed or EngineLoadTimeout.
    """
    plain = replace(order, projector_path=None)
    arguments = arguments_for(plain, read_host_facts(), _ANY_PORT)
    plan = llama_plan(build, plain, replace(arguments, fit=True, verbosity=_TRACE_VERBOSITY))
    argv, env = host_command(plan)
    if not plan.ends_with_parent:
        argv = guarded(argv)
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout_s
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        with process:
            output = process.stdout or ()
            tables = 1 if plain.companions.draft is None else 2
            lines = list(_until_tables_end((line.decode("utf-8", "replace") for line in output), tables))
            process.kill()
    finally:
        timer.cancel()
    report = _read(lines, plain)
    if report is not None:
        return report
    if time.monotonic() >= deadline:
        raise EngineLoadTimeout(f"the engine did not rehearse {order.name} in {format_duration(timeout_s)}")
    found = diagnose(process.returncode, "".join(lines), devices=visible_devices(order))
    raise EngineLoadFailed(
        f"{order.name} could not be rehearsed: {found.sentence}",
        hint=found.remedy or "A llama-server without --fit cannot rehearse.",
        cause=found.cause,
    )


def _until_tables_end(lines: Iterable[str], tables: int) -> Iterator[str]:
    in_table = False
    for line in lines:
        if in_table and not _ROW.search(line):
            tables, in_table = tables - 1, False
        if tables == 0 or _FITTED.search(line):
            return
        in_table = in_table or _TABLE in line
        yield line


def _read(lines: list[str], order: EngineOrder) -> EngineReport | None:
    start = next((number for number, line in enumerate(lines) if _TABLE in line), None)
    if start is None:
        return None
    exact_compute = compute_bytes(lines)
    rows = [match for line in lines[start + 1 :] if (match := _ROW.search(line))]
    addresses = [device.pci_bus_id for device in visible_devices(order)]
    devices: dict[str, ReportedDevice] = {}
    host = Parts()
    for row in rows:
        name = row["name"]
        parts = Parts(*(int(row[part]) * MIB for part in ("model", "context", "compute")))
        if name not in exact_compute or name == "Host":
            # Host RAM, or a kind of it that the engine does not count as host, such as repacked weights.
            host += parts
        else:
            known = devices.get(name)
            if known is not None:
                # A draft's own table.
                devices[name] = replace(known, parts=replace(parts, compute=0) + known.parts)
                continue
            address = addresses[len(devices)] if len(devices) < len(addresses) else None
            devices[name] = ReportedDevice(name, address, replace(parts, compute=exact_compute[name]))
    host = replace(host, compute=exact_compute.get("CPU", host.compute))
    return EngineReport((*devices.values(), ReportedDevice("CPU", None, host, on_host=True)))
