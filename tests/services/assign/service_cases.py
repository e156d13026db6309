"""Services and GPUs for the tests of strategies: the design's reference hardware, and drawn ones."""

from typing import Any

from hypothesis import strategies as st

from cotenant.domain.devices import DeviceId
from cotenant.domain.units import MIB
from cotenant.services.model import Assignment, Service, ServiceDevice, ServiceRole

A5500 = ServiceDevice(DeviceId("GPU-a5500"), 0, "RTX A5500", 24564 * MIB)
A400 = ServiceDevice(DeviceId("GPU-a400"), 1, "RTX A400", 4094 * MIB, occupied_bytes=329 * MIB)
REFERENCE = (A5500, A400)

LLM = Service("ai-llm", "Nemotron-3-Nano-30B", 22221 * MIB, ServiceRole.LLM, latency_critical=True)
YOLO = Service("ai-yolo26", "YOLO26", 650 * MIB, latency_critical=True)
FLORENCE = Service("ai-florence", "Florence-2-Large", 1536 * MIB)
CLIP = Service("ai-clip", "CLIP ViT-L", 1229 * MIB)
ENRICHMENT = Service("ai-enrichment", "Model Zoo", 6963 * MIB, budget_env="VRAM_BUDGET_GB")
FIVE = (LLM, YOLO, FLORENCE, CLIP, ENRICHMENT)


def gpu(index: int, total_mib: int, occupied_mib: int = 0, **more: Any) -> ServiceDevice:
    return ServiceDevice(
        DeviceId(f"GPU-{index}"),
        index,
        "card",
        total_mib * MIB,
        occupied_mib * MIB,
        **more,
    )


def needing(name: str, mib: int | None, **more: Any) -> Service:
    return Service(name, vram_bytes=None if mib is None else mib * MIB, **more)


def on(service: Service, device: ServiceDevice | None, budget_gb: float | None = None) -> Assignment:
    return Assignment(
        service.name, device.index if device else None, device.id if device else None, budget_gb
    )


@st.composite
def gpus(draw: st.DrawFn, most: int = 5, *, healthy: bool = False) -> tuple[ServiceDevice, ...]:
    count = draw(st.integers(1, most))
    speeds = draw(st.booleans())
    found = [
        gpu(
            index,
            draw(st.sampled_from([2048, 4094, 8192, 12288, 24564])),
            draw(st.sampled_from([0, 0, 329, 3000])),
            speed=float(draw(st.integers(1, 4))) if speeds else None,
            healthy=healthy or draw(st.integers(0, 4)) > 0,
        )
        for index in range(count)
    ]
    return tuple(draw(st.permutations(found)))


@st.composite
def service_lists(draw: st.DrawFn, most: int = 7, *, enabled: bool = False) -> tuple[Service, ...]:
    return tuple(
        needing(
            f"s{index}",
            draw(st.one_of(st.none(), st.integers(1, 12000), st.sampled_from([650, 1536, 6963, 22221]))),
            role=draw(st.sampled_from([ServiceRole.OTHER, ServiceRole.OTHER, ServiceRole.LLM])),
            latency_critical=draw(st.booleans()),
            enabled=enabled or draw(st.integers(0, 4)) > 0,
            budget_env=draw(st.sampled_from([None, "BUDGET"])),
        )
        for index in range(draw(st.integers(0, most)))
    )
