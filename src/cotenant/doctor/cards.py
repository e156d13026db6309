"""Checks of the driver, the cards, how they are shared, and the engines that see them."""

from collections.abc import Iterator
from typing import Final

from cotenant.doctor.findings import Observation, ok, problem, unknown, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.devices import ComputeMode, GpuProcess
from cotenant.domain.errors import EngineMissing
from cotenant.domain.units import format_bytes, format_count
from cotenant.engines.llama_cpp.builds import discover
from cotenant.hardware.gpus.card_health import CardHealth, read_health
from cotenant.hardware.mps.directories import MpsDirectories
from cotenant.hardware.mps.discovery import find_daemons, is_of_mps
from cotenant.hardware.mps.program import find_program

_LARGE_SHARE: Final = 0.1
"""The share of a card that others may use without a warning: a desktop needs some."""


def driver(host: HostContext) -> Iterator[Observation]:
    """Check the driver as a whole."""
    inventory = host.inventory()
    for text in inventory.problems:
        yield problem(text, "Models can use only GPUs that the driver shows.")
    if host.cards():
        facts = [f"{inventory.source} driver {inventory.driver_version or 'of unknown version'}"]
        if inventory.cuda_version:
            facts.append(f"CUDA {inventory.cuda_version}")
        yield ok(", ".join(facts))
    elif not inventory.problems:
        yield from _no_card(host)


def readings(host: HostContext) -> Iterator[Observation]:
    """Check whether every card reports its memory."""
    for device in host.cards():
        reading = host.inventory().reading(device)
        if reading.problem:
            yield problem(
                f"{device.label}: {reading.problem}", "No model is planned on a card of unknown memory."
            )
        else:
            free, total = format_bytes(reading.free_bytes or 0), format_bytes(device.total_bytes or 0)
            kept = format_bytes(device.system_bytes)
            shared = f" of host RAM, which it shares; {kept} stay with the system" if device.unified else ""
            yield ok(f"{device.label}: {free} of {total} free{shared}")


def compute_modes(host: HostContext) -> Iterator[Observation]:
    """Check for cards that do not admit several engines."""
    inventory = host.inventory()
    for device in host.cards():
        index = "GPU" if device.index is None else device.index
        match inventory.reading(device).compute_mode:
            case ComputeMode.PROHIBITED:
                yield problem(
                    f"{device.label} is in Prohibited mode",
                    "No engine can use it.",
                    f"sudo nvidia-smi -i {index} -c DEFAULT",
                )
            case ComputeMode.EXCLUSIVE_PROCESS:
                yield warning(
                    f"{device.label} is in Exclusive_Process mode",
                    "It admits one process at a time: a second engine needs MPS, which `devices.mps: auto` "
                    "starts, or the mode changed, which affects every user of the card.",
                    f"sudo nvidia-smi -i {index} -c DEFAULT",
                )
            case ComputeMode.DEFAULT:
                yield ok(f"{device.label} admits any number of processes")


def foreign_processes(host: HostContext) -> Iterator[Observation]:
    """Check for other programs that hold much of a card."""
    inventory = host.inventory()
    for device in host.cards():
        processes = inventory.reading(device).processes
        if processes is None:
            yield unknown(
                f"{device.label}: the driver does not list its processes",
                "The users of its memory are unknown, as in a container without the host's process ids.",
            )
            continue
        others = [process for process in processes if not _is_ours(host, process)]
        held = sum(process.used_bytes or 0 for process in others)
        if others and held > _LARGE_SHARE * (device.total_bytes or held):
            yield warning(
                f"{device.label}: others hold {format_bytes(held)} ({_named(others)})",
                "Models get the rest; if others take more later, an engine may fail.",
                f"kill {' '.join(str(process.pid) for process in others[:4])}",
            )
        else:
            more = f", {len(others)} of others with little memory" if others else ""
            yield ok(f"{device.label}: {format_count(len(processes) - len(others), 'engine')}{more}")


def health(host: HostContext) -> Iterator[Observation]:
    """Check the health of each card that NVML reports."""
    if not host.nvidia_cards():
        return
    cards = read_health(host.nvml)
    for card in cards:
        yield from _memory_errors(card)
        yield from _link(card)
        yield from _power(card)
    lazy = [card.label for card in cards if card.persistence is False]
    if lazy:
        yield warning(
            f"persistence mode is off ({', '.join(lazy)})",
            "The driver shuts an unused card down, and each first use then takes seconds.",
            "sudo nvidia-smi -pm 1",
        )
    elif any(card.persistence for card in cards):
        yield ok("persistence mode is on")


def control_daemons(host: HostContext) -> Iterator[Observation]:
    """Check the control daemons, and for leftovers of dead ones."""
    inventory = host.inventory()
    cards = host.nvidia_cards()
    modes = {card.label: inventory.reading(card).compute_mode for card in cards}
    exclusive = [label for label, mode in modes.items() if mode is ComputeMode.EXCLUSIVE_PROCESS]
    program = find_program(host.environ)
    if program is None:
        if exclusive:
            yield warning(
                "the control program of MPS, nvidia-cuda-mps-control, is not installed",
                f"{', '.join(exclusive)} cannot be shared by several engines.",
                "Install the NVIDIA driver's compute tools (Debian, Ubuntu: nvidia-compute-utils-VERSION).",
            )
        return
    found = list(find_daemons(program, host.state_dir, host.environ))
    for daemon in found:
        where = f"an MPS daemon in {daemon.directories.pipe}"
        if daemon.problem is not None:
            yield warning(
                f"{where} cannot be used: {daemon.problem}",
                "Engines run without MPS, which a card in Exclusive_Process mode does not admit.",
                f"CUDA_MPS_PIPE_DIRECTORY={daemon.directories.pipe} nvidia-cuda-mps-control <<< quit",
            )
        else:
            serves = "every card" if daemon.cards is None else ", ".join(daemon.cards)
            yield ok(f"{where} serves {serves}")
    known = MpsDirectories.known(host.state_dir, host.environ)
    stale = [each for each in known if (pid := each.recorded_pid()) is not None and not is_of_mps(pid)]
    if not host.path("/proc/self").exists():
        stale = []
    for directories in stale:
        yield warning(
            f"{directories.pipe} was left behind by an MPS daemon that no longer runs",
            "Programs that find it wait for the daemon or fail.",
            f"rm -r {directories.pipe}",
        )
    if not found and not stale and cards:
        yield ok("MPS is installed and does not run" + ("" if exclusive else "; it is not needed"))


def _no_card(host: HostContext) -> Iterator[Observation]:
    pci = sorted(host.path("/sys/bus/pci/devices").glob("*"))
    cards = [
        each
        for each in pci
        if (host.text(f"/sys/bus/pci/devices/{each.name}/vendor") or "").strip() == "0x10de"
        and (host.text(f"/sys/bus/pci/devices/{each.name}/class") or "").startswith("0x03")
    ]
    if cards:
        yield problem(
            f"{len(cards)} NVIDIA card(s) are plugged in ({', '.join(each.name for each in cards)}), but no "
            "driver handles them",
            "Models run on the CPU.",
            "sudo ubuntu-drivers install   # or your distribution's package of the NVIDIA driver",
        )
    else:
        yield ok("no GPU: models run on the CPU, in host RAM")


def _memory_errors(card: CardHealth) -> Iterator[Observation]:
    if card.uncorrected_errors:
        yield problem(
            f"{card.label}: {card.uncorrected_errors} memory errors that ECC could not correct since the "
            "driver was loaded",
            "Results may be wrong and engines may crash.",
            f"sudo nvidia-smi -i {card.index} -r   # then watch; replace the card if they come back",
        )
    elif card.uncorrected_errors == 0:
        yield ok(f"{card.label}: no uncorrected memory error")
    if card.repairs_failed:
        yield problem(
            f"{card.label}: its memory has no spare rows left",
            "The next error cannot be remapped: replace the card.",
            f"nvidia-smi -i {card.index} -q -d ROW_REMAPPER,PAGE_RETIREMENT",
        )
    if card.repairs_pending:
        yield warning(
            f"{card.label}: damaged memory waits to be remapped",
            "Until the card is reset, the damaged rows are still in use.",
            f"sudo nvidia-smi -i {card.index} -r",
        )


def _link(card: CardHealth) -> Iterator[Observation]:
    width, widest = card.link_width, card.link_width_most
    generation, newest = card.link_generation, card.link_generation_most
    if width and widest and width < widest:
        yield warning(
            f"{card.label}: its PCIe link has {width} lanes of {widest}",
            "Models load slower in proportion, and split models wait for transfers between cards.",
            "Reseat the card; check riser, slot and the lanes that the mainboard shares.",
        )
    elif generation and newest and generation < newest and card.performance_state == 0:
        yield warning(
            f"{card.label}: its PCIe link runs at generation {generation} of {newest} under load",
            "Models load slower than they could.",
            "Check the PCIe speed in the firmware settings, the riser and the slot.",
        )
    elif width and widest:
        yield ok(f"{card.label}: PCIe link of {width} lanes, generation {newest or '?'}")


def _power(card: CardHealth) -> Iterator[Observation]:
    if card.slowed_by:
        yield warning(
            f"{card.label} is slowed down: {', '.join(card.slowed_by)}",
            "It generates tokens slower than it could.",
            f"nvidia-smi -i {card.index} -q -d PERFORMANCE,TEMPERATURE,POWER",
        )
    if card.temperature_c is not None and card.temperature_c >= 90:
        yield warning(
            f"{card.label} is at {card.temperature_c} °C",
            "It slows down or switches off when it gets hotter.",
            "Clean fans and filters; give the case more air.",
        )


def _is_ours(host: HostContext, process: GpuProcess) -> bool:
    """Whether a process is an engine of a Cotenant daemon, by its command line or its parent's."""
    pid: int | str = process.pid
    for _ in range(2):
        if "cotenant" in (host.text(f"/proc/{pid}/cmdline") or ""):
            return True
        stat = (host.text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
        if len(stat) < 2:
            return False
        pid = stat[1]
    return False


def _named(processes: list[GpuProcess]) -> str:
    names = [f"{(process.name or 'unknown').rsplit('/', 1)[-1]} {process.pid}" for process in processes]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def builds(host: HostContext) -> Iterator[Observation]:
    """Check for an engine that can use the cards of this machine."""
    try:
        found = discover(host.llama_server).all
    except EngineMissing as error:
        yield problem(error.message, "Nothing runs without it.", error.hint)
        return
    usable = [build for build in found if build.problem is None]
    for build in found:
        if build.problem is not None:
            what = f"{build.form} ({build.program}) does not run: {build.problem}"
            yield warning(what, "It is not used.")
        else:
            sees = ", ".join(device.label for device in build.devices)
            yield ok(f"{build.form} {build.version} {f'sees {sees}' if sees else 'runs on the CPU'}")
    cards = host.cards()
    flavour = next((card.vendor.traits.backend for card in cards if card.vendor), "cpu")
    if not usable:
        yield problem(
            "no engine can run on this machine",
            "No model can be loaded.",
            f"cotenant engine install {flavour}",
        )
    elif cards and not any(build.sees_gpus for build in usable):
        yield problem(
            f"no engine sees the GPUs ({', '.join(card.label for card in cards)})",
            "They are built for the CPU only, or without code for these cards: models on GPUs are refused.",
            f"cotenant engine install {flavour}",
        )
