"""Orders, devices and waiting, for the tests of this room."""

import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cotenant.domain.devices import HOST_ID, Device, DeviceId, DeviceKind
from cotenant.domain.models import ModelKind, Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Share
from cotenant.domain.units import GIB
from cotenant.domain.vendors import Vendor
from cotenant.interfaces import EngineOrder

HOST = Device(HOST_ID, DeviceKind.HOST, "host RAM", total_bytes=64 * GIB)


def gpu(index: int, *, name: str = "NVIDIA GeForce RTX 3090", described: bool = False) -> Device:
    return Device(
        DeviceId(f"GPU-{index:08d}-0000"),
        DeviceKind.GPU,
        name,
        index=index,
        total_bytes=24 * GIB,
        pci_bus_id=f"0000:{index + 1:02X}:00.0",
        described=described,
        vendor=Vendor.NVIDIA,
    )


def share(device: Device, first: int | None, last: int | None, count: int, *, output: bool = False) -> Share:
    budget = Budget(device, 24 * GIB, 23 * GIB)
    return Share(budget, first, last, count, has_output=output, parts=Parts())


def host_order(model_path: Path, **recipe: Any) -> EngineOrder:
    """An order for a model of four blocks in host RAM."""
    chosen = Recipe(**{"n_ctx": 512, "parallel": 2, "n_gpu_layers": 0, **recipe})
    placement = Placement("tiny", chosen, 4, 0, (share(HOST, 0, 3, 0, output=True),), Parts())
    return EngineOrder("tiny", model_path, ModelKind.TEXT, placement)


def gpu_order(counts: tuple[int, ...], n_layers: int | None = None, **recipe: Any) -> EngineOrder:
    """An order over as many GPUs as there are counts, the output layer on the last that has any."""
    n_gpu_layers = sum(counts)
    layers = n_gpu_layers - 1 if n_layers is None else n_layers
    first, shares = layers + 1 - n_gpu_layers, []
    for index, count in enumerate(counts):
        last = min(first + count, layers) - 1
        shares.append(share(gpu(index), first if count else None, last if count else None, count))
        first += count
    placement = Placement("big", Recipe(**recipe), layers, n_gpu_layers, tuple(shares), Parts())
    return EngineOrder("big", Path("big.gguf"), ModelKind.TEXT, placement)


def with_env(order: EngineOrder, **env: object) -> EngineOrder:
    return replace(order, env={name: str(value) for name, value in env.items()})


def fake_server(folder: Path) -> Path:
    """Write a program that behaves as `fake_llama_server` does."""
    program = folder / "fake-llama-server"
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_llama_server.py")} "$@"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program
