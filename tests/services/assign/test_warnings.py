"""Warnings, in the words of the design."""

from collections.abc import Sequence

import pytest

from cotenant.services.assign.warnings import size_text, warnings_of
from cotenant.services.model import Assignment, Service, ServiceDevice, ServiceRole, WarningKind
from tests.services.assign.service_cases import (
    A400,
    A5500,
    CLIP,
    ENRICHMENT,
    FIVE,
    FLORENCE,
    LLM,
    REFERENCE,
    YOLO,
    gpu,
    needing,
    on,
)


def told(
    assignments: Sequence[Assignment],
    services: Sequence[Service] = FIVE,
    devices: Sequence[ServiceDevice] = REFERENCE,
    known: frozenset[str] | None = None,
) -> list[str]:
    return [w.text for w in warnings_of(services, devices, assignments, known_services=known)]


def test_what_fits_is_warned_of_nothing() -> None:
    assert told([on(LLM, A5500), on(CLIP, A400), on(FLORENCE, A400)]) == []


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (3.5, "ai-enrichment VRAM budget (6.8 GB) exceeds GPU 1 (4 GB). Auto-adjusted to 3.5 GB."),
        (3.0, "ai-enrichment VRAM budget (6.8 GB) exceeds GPU 1 (4 GB). Set to 3 GB."),
        (6.8, "ai-enrichment VRAM budget (6.8 GB) exceeds GPU 1 (4 GB)"),
        (3.9, "ai-enrichment VRAM budget (6.8 GB) exceeds GPU 1 (4 GB). Set to 3.9 GB."),
    ],
)
def test_vram_exceeds_gpu_capacity(budget: float, text: str) -> None:
    assert told([on(ENRICHMENT, A400, budget)])[0] == text


def test_a_service_without_a_budget_exceeds_its_gpu() -> None:
    (warning,) = warnings_of([needing("detector", 6963)], REFERENCE, [on(needing("detector", 6963), A400)])
    assert warning.text == "detector VRAM (6.8 GB) exceeds GPU 1 (4 GB)"
    assert (warning.kind, warning.service, warning.gpu_index) == (
        WarningKind.BUDGET_EXCEEDS_GPU,
        "detector",
        1,
    )


def test_llm_on_small_gpu() -> None:
    assert told([on(LLM, A400)]) == ["Nemotron-3-Nano-30B requires ~21.7 GB, GPU 1 only has 4 GB"]


def test_an_llm_without_a_model_goes_by_its_name() -> None:
    llm = needing("chat", 22221, role=ServiceRole.LLM)
    assert told([on(llm, A400)], [llm]) == ["chat requires ~21.7 GB, GPU 1 only has 4 GB"]


def test_multiple_large_models_on_small_gpu() -> None:
    assert told([on(LLM, A400), on(CLIP, A400)]) == [
        "Nemotron-3-Nano-30B requires ~21.7 GB, GPU 1 only has 4 GB",
        "Combined VRAM (~23 GB) exceeds GPU 1 capacity (4 GB)",
    ]


def test_a_gpu_that_others_use_has_less_to_give() -> None:
    busy = gpu(0, 24564, 4096)
    assert told([on(LLM, busy)], devices=[busy]) == [
        "Nemotron-3-Nano-30B requires ~21.7 GB, GPU 0 only has 20 GB free of 24 GB"
    ]
    busy = gpu(0, 4094, 3000)
    assert told([on(FLORENCE, busy)], devices=[busy]) == [
        "ai-florence VRAM (1.5 GB) exceeds what is free on GPU 0 (1.1 GB of 4 GB)"
    ]
    assert told([on(YOLO, busy), on(needing("other", 650), busy)], [YOLO, needing("other", 650)], [busy]) == [
        "Combined VRAM (~1.3 GB) exceeds what is free on GPU 0 (1.1 GB of 4 GB)"
    ]


def test_a_budget_that_other_services_leave_no_room_for_says_what_is_left() -> None:
    assert told([on(LLM, A5500), on(ENRICHMENT, A5500, 2.1)]) == [
        "ai-enrichment VRAM budget (6.8 GB) exceeds what is left on GPU 0 (2.3 GB of 24 GB). "
        "Auto-adjusted to 2.1 GB."
    ]


def test_a_service_that_no_budget_helps_is_told_so() -> None:
    assert told([on(ENRICHMENT, A400), on(LLM, A400)])[-2:] == [
        "Nemotron-3-Nano-30B requires ~21.7 GB, GPU 1 only has 4 GB",
        "Combined VRAM (~28 GB) exceeds GPU 1 capacity (4 GB)",
    ]
    assert "No budget fits next to what is there." in told([on(ENRICHMENT, A400), on(LLM, A400)])[0]


def test_sizes_that_would_read_the_same_are_told_apart() -> None:
    close = needing("close", 24570)
    assert told([on(close, A5500)], [close]) == ["close VRAM (24,570 MB) exceeds GPU 0 (24,564 MB)"]
    halves = [needing("a", 12285), needing("b", 12285)]
    assert told([on(service, A5500) for service in halves], halves) == [
        "Combined VRAM (~24,570 MB) exceeds GPU 0 capacity (24,564 MB)"
    ]


def test_gpu_missing() -> None:
    assert told([on(CLIP, gpu(7, 4094)), Assignment("ai-yolo26", 9)]) == [
        "GPU 7 is missing. ai-clip is left unpinned and uses whichever GPU is available.",
        "GPU 9 is missing. ai-yolo26 is left unpinned and uses whichever GPU is available.",
    ]
    remembered = Assignment("ai-clip", None, gpu(7, 4094).id)
    assert told([remembered]) == [
        "GPU-7 is missing. ai-clip is left unpinned and uses whichever GPU is available."
    ]


def test_gpu_unhealthy() -> None:
    sick = gpu(0, 24564, healthy=False)
    assert told([on(CLIP, sick)], devices=[sick]) == ["GPU 0 is unhealthy. ai-clip is pinned to it."]


def test_unknown_service() -> None:
    assert told([Assignment("ai-foo", 0)]) == [
        "ai-foo is not among the configured services. Its assignment is left out."
    ]
    assert told([], [CLIP, YOLO], known=frozenset({"ai-clip"})) == [
        "ai-yolo26 is not in the compose files. It cannot be pinned."
    ]


def test_a_disabled_service_is_warned_of_nothing() -> None:
    off = needing("off", 30000, enabled=False)
    assert told([on(off, A400)], [off], known=frozenset()) == []


def test_user_assigns_same_gpu_to_all_is_allowed() -> None:
    kinds = {w.kind for w in warnings_of(FIVE, REFERENCE, [on(service, A5500) for service in FIVE])}
    assert kinds == {WarningKind.COMBINED_EXCEEDS_GPU}


@pytest.mark.parametrize(
    ("mib", "text"), [(24564, "24 GB"), (4094, "4 GB"), (6963, "6.8 GB"), (329, "329 MB"), (0, "0 MB")]
)
def test_sizes_read_as_in_the_design(mib: int, text: str) -> None:
    assert size_text(mib * 2**20) == text
