"""What the driver tells of the cards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cotenant.doctor.findings import Area, Finding, ok, problem, unknown, warning
from cotenant.doctor.host_context import Patient
from cotenant.domain.devices import ComputeMode, GpuProcess
from cotenant.domain.units import format_bytes
from cotenant.hardware.gpus.card_health import CardHealth, read_health

_MUCH: Final = 0.1
"""The share of a card that others may hold without a word, as a desktop does."""
_PERFORMANCE_STATE: Final = 0
_HOT_C: Final = 90


def driver(patient: Patient) -> Iterator[Finding]:
    """Look at the driver as a whole, and whether every card answers."""
    inventory = patient.inventory()
    for told in inventory.problems:
        yield problem(Area.DRIVER, told, "What the driver does not show, no model can use.")
    found = patient.cards()
    if found:
        facts = [f"{inventory.source} driver {inventory.driver_version or 'of unknown version'}"]
        if inventory.cuda_version:
            facts.append(f"CUDA {inventory.cuda_version}")
        yield ok(Area.DRIVER, ", ".join(facts))
    elif not inventory.problems:
        yield from _no_card(patient)
    for device in found:
        reading = inventory.reading(device)
        if reading.problem:
            yield problem(
                Area.CARDS,
                f"{device.label}: {reading.problem}",
                "A card of unknown memory is never planned upon.",
            )
        else:
            free, total = format_bytes(reading.free_bytes or 0), format_bytes(device.total_bytes or 0)
            yield ok(Area.CARDS, f"{device.label}: {free} of {total} free")


def compute_modes(patient: Patient) -> Iterator[Finding]:
    """Look for cards that do not admit several engines."""
    inventory = patient.inventory()
    for device in patient.cards():
        index = "GPU" if device.index is None else device.index
        match inventory.reading(device).compute_mode:
            case ComputeMode.PROHIBITED:
                yield problem(
                    Area.SHARING,
                    f"{device.label} is in Prohibited mode",
                    "No engine can use it.",
                    f"sudo nvidia-smi -i {index} -c DEFAULT",
                )
            case ComputeMode.EXCLUSIVE_PROCESS:
                yield warning(
                    Area.SHARING,
                    f"{device.label} is in Exclusive_Process mode",
                    "It admits one process at a time: a second engine needs MPS, which `devices.mps: auto` "
                    "starts, or the mode changed, which affects every user of the card.",
                    f"sudo nvidia-smi -i {index} -c DEFAULT",
                )
            case ComputeMode.DEFAULT:
                yield ok(Area.SHARING, f"{device.label} admits any number of processes")


def foreign_processes(patient: Patient) -> Iterator[Finding]:
    """Look for others who hold much of a card."""
    inventory = patient.inventory()
    for device in patient.cards():
        processes = inventory.reading(device).processes
        if processes is None:
            yield unknown(
                Area.SHARING,
                f"{device.label}: the driver does not list its processes",
                "Who holds memory cannot be told, as in a container without the host's process ids.",
            )
            continue
        others = [process for process in processes if not _is_ours(patient, process)]
        held = sum(process.used_bytes or 0 for process in others)
        if others and held > _MUCH * (device.total_bytes or held):
            yield warning(
                Area.SHARING,
                f"{device.label}: others hold {format_bytes(held)} ({_named(others)})",
                "Models get what is left; what others take later may end an engine.",
                f"kill {' '.join(str(process.pid) for process in others[:4])}",
            )
        else:
            told = f", {len(others)} of others with little memory" if others else ""
            yield ok(Area.SHARING, f"{device.label}: {len(processes) - len(others)} engines{told}")


def health(patient: Patient) -> Iterator[Finding]:
    """Look at what NVML tells of each card's condition."""
    if not patient.nvidia_cards():
        return
    cards = read_health(patient.nvml)
    for card in cards:
        yield from _memory_errors(card)
        yield from _link(card)
        yield from _power(card)
    lazy = [str(card.index) for card in cards if card.persistence is False]
    if lazy:
        yield warning(
            Area.CARDS,
            f"persistence mode is off (GPU {', '.join(lazy)})",
            "The driver shuts an unused card down, and each first use then takes seconds.",
            "sudo nvidia-smi -pm 1",
        )
    elif any(card.persistence for card in cards):
        yield ok(Area.CARDS, "persistence mode is on")


def _no_card(patient: Patient) -> Iterator[Finding]:
    pci = sorted(patient.path("/sys/bus/pci/devices").glob("*"))
    cards = [each for each in pci if _is_nvidia_display(each.name, patient)]
    if cards:
        yield problem(
            Area.DRIVER,
            f"{len(cards)} NVIDIA card(s) are plugged in ({', '.join(each.name for each in cards)}), but no "
            "driver speaks for them",
            "Models run on the CPU.",
            "sudo ubuntu-drivers install   # or your distribution's package of the NVIDIA driver",
        )
    else:
        yield ok(Area.DRIVER, "no GPU: models run on the CPU, in host RAM")


def _is_nvidia_display(address: str, patient: Patient) -> bool:
    folder = f"/sys/bus/pci/devices/{address}"
    vendor, kind = patient.text(f"{folder}/vendor"), patient.text(f"{folder}/class")
    return (vendor or "").strip() == "0x10de" and (kind or "").startswith("0x03")


def _memory_errors(card: CardHealth) -> Iterator[Finding]:
    if card.uncorrected_errors:
        yield problem(
            Area.CARDS,
            f"{card.label}: {card.uncorrected_errors} memory errors that ECC could not correct since the "
            "driver was loaded",
            "Results may be wrong and engines die of it.",
            f"sudo nvidia-smi -i {card.index} -r   # then watch; replace the card if they come back",
        )
    elif card.uncorrected_errors == 0:
        yield ok(Area.CARDS, f"{card.label}: no uncorrected memory error")
    if card.repairs_failed:
        yield problem(
            Area.CARDS,
            f"{card.label}: its memory has run out of spare rows",
            "The next error cannot be mapped away: the card is due for replacement.",
            f"nvidia-smi -i {card.index} -q -d ROW_REMAPPER,PAGE_RETIREMENT",
        )
    if card.repairs_pending:
        yield warning(
            Area.CARDS,
            f"{card.label}: damaged memory waits to be mapped away",
            "Until the card is reset, the damaged rows are still in use.",
            f"sudo nvidia-smi -i {card.index} -r",
        )


def _link(card: CardHealth) -> Iterator[Finding]:
    width, widest = card.link_width, card.link_width_most
    generation, newest = card.link_generation, card.link_generation_most
    if width and widest and width < widest:
        yield warning(
            Area.CARDS,
            f"{card.label}: its PCIe link has {width} lanes of {widest}",
            "Models load in proportion slower, and layers split over cards wait for each other.",
            "Reseat the card, look at riser and slot, and at the lanes that the mainboard shares.",
        )
    elif generation and newest and generation < newest and card.performance_state == _PERFORMANCE_STATE:
        yield warning(
            Area.CARDS,
            f"{card.label}: its PCIe link runs at generation {generation} of {newest} under load",
            "Models load slower than they could.",
            "Look at the PCIe speed in the firmware's settings, and at riser and slot.",
        )
    elif width and widest:
        yield ok(Area.CARDS, f"{card.label}: PCIe link of {width} lanes, generation {newest or '?'}")


def _power(card: CardHealth) -> Iterator[Finding]:
    if card.slowed_by:
        yield warning(
            Area.CARDS,
            f"{card.label} is slowed down: {', '.join(card.slowed_by)}",
            "Tokens come slower than the card can.",
            f"nvidia-smi -i {card.index} -q -d PERFORMANCE,TEMPERATURE,POWER",
        )
    if card.temperature_c is not None and card.temperature_c >= _HOT_C:
        yield warning(
            Area.CARDS,
            f"{card.label} is at {card.temperature_c} °C",
            "It slows down or switches off when it gets hotter.",
            "Clean fans and filters; give the case more air.",
        )


def _is_ours(patient: Patient, process: GpuProcess) -> bool:
    """Whether a process is an engine of a Cotenant daemon: it, or whoever started it, says so."""
    pid: int | str = process.pid
    for _ in range(2):
        if "cotenant" in (patient.text(f"/proc/{pid}/cmdline") or ""):
            return True
        stat = (patient.text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
        if len(stat) < 2:
            return False
        pid = stat[1]
    return False


def _named(processes: list[GpuProcess]) -> str:
    names = [f"{(process.name or 'unknown').rsplit('/', 1)[-1]} {process.pid}" for process in processes]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
