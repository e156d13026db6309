from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.analysis.calibration import (
    LAST_RECORDS,
    LEAST_MARGIN_BYTES,
    MAX_OVERHEAD_BYTES,
    estimate_errors,
    expected_load_times,
    learned_overheads,
    seen_bytes,
)
from cotenant.domain.devices import HOST_ID, Device, DeviceId, DeviceKind
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.models import Parts
from cotenant.domain.records import FootprintRecord, LoadRecord, LoadTimes, ModelOnEngine, Warmth
from cotenant.domain.units import GIB, MIB
from cotenant.planning.budgets import BudgetRules, overhead_bytes

LLAMA_CPP = EngineKind.LLAMA_CPP
CARD_A = LLAMA_CPP, "A"
DEFAULT = 512 * MIB
REPORTED = Parts(weights=4 * GIB, kv=GIB, compute=100 * MIB)


def record(
    overhead: int | None, at: float = 0.0, device: str = "A", engine: str = "llama-server b1"
) -> FootprintRecord:
    measured = None if overhead is None else REPORTED.total + overhead
    predicted = replace(REPORTED, overhead=DEFAULT)
    return FootprintRecord(
        at, "m", "f", "r", DeviceId("GPU-0"), device, predicted, engine, REPORTED, measured
    )


def records(*overheads: int, engine: str = "llama-server b1", start: int = 0) -> list[FootprintRecord]:
    return [record(value, start + at, engine=engine) for at, value in enumerate(overheads)]


overheads = st.integers(-GIB, 8 * GIB)


@given(st.lists(overheads, max_size=50), st.integers(0, GIB))
def test_an_estimate_is_bounded_and_the_default_stands_until_three_loads(
    values: list[int], default: int
) -> None:
    learned = learned_overheads(records(*values), default)
    if not values:
        assert learned == {}
    elif len(values) < 3:
        assert learned == {CARD_A: default}
    else:
        assert 0 <= learned[CARD_A] <= MAX_OVERHEAD_BYTES


@given(st.lists(st.integers(0, GIB), min_size=3, max_size=LAST_RECORDS))
def test_the_estimate_covers_the_greater_half_of_what_was_seen(values: list[int]) -> None:
    estimate = learned_overheads(records(*values), DEFAULT)[CARD_A]
    assert sum(value <= estimate for value in values) > len(values) / 2


@given(st.lists(st.integers(90 * MIB, 110 * MIB), min_size=7, max_size=15), st.lists(overheads, max_size=3))
def test_a_few_loads_amid_foreign_allocations_do_not_move_it_far(usual: list[int], odd: list[int]) -> None:
    estimate = learned_overheads(records(*usual, *odd), DEFAULT)[CARD_A]
    assert 90 * MIB <= estimate <= 110 * MIB + 3 * 1.4826 * 20 * MIB + 1


@given(st.permutations(records(*range(0, 30 * MIB, MIB))))
def test_records_count_by_their_time_and_not_by_their_order(shuffled: list[FootprintRecord]) -> None:
    assert learned_overheads(shuffled, DEFAULT) == learned_overheads(
        sorted(shuffled, key=lambda row: row.at), DEFAULT
    )


def test_steady_loads_give_what_they_took_and_a_margin() -> None:
    assert learned_overheads(records(*[300 * MIB] * 3), DEFAULT) == {CARD_A: 300 * MIB + LEAST_MARGIN_BYTES}


def test_only_the_newest_loads_count() -> None:
    values = [MIB] * 100 + [300 * MIB] * LAST_RECORDS
    assert learned_overheads(records(*values), DEFAULT) == {CARD_A: 300 * MIB + LEAST_MARGIN_BYTES}


def test_each_device_name_learns_for_itself_and_unmeasured_loads_teach_nothing() -> None:
    mixed = [
        *records(*[300 * MIB] * 3),
        *(record(100 * MIB, device="B") for _ in range(2)),
        *(record(None, device="C") for _ in range(9)),
    ]
    assert learned_overheads(mixed, DEFAULT) == {
        CARD_A: 300 * MIB + LEAST_MARGIN_BYTES,
        (LLAMA_CPP, "B"): DEFAULT,
    }


def test_no_kind_of_engine_learns_from_another() -> None:
    """Ollama's report includes what llama.cpp's leaves out."""
    ollama = records(*[0] * 9, engine="ollama 0.12.1")
    assert learned_overheads(ollama, DEFAULT) == {(EngineKind.OLLAMA, "A"): LEAST_MARGIN_BYTES}
    embedded = records(*[300 * MIB] * 3, engine="xllamacpp 0.2", start=20)
    learned = learned_overheads([*ollama, *embedded], DEFAULT)
    assert learned[CARD_A] == 300 * MIB + LEAST_MARGIN_BYTES
    assert learned_overheads(records(MIB, MIB, MIB, engine="of another time"), DEFAULT) == {}


def test_errors_and_measured_bytes_are_those_of_the_engine_that_runs_a_model_now() -> None:
    rows = [record(0, 1.0), replace(record(0, 2.0, engine="ollama 0.12.1"), measured_bytes=GIB)]
    assert seen_bytes(rows) == {
        ModelOnEngine("m", LLAMA_CPP): REPORTED.total,
        ModelOnEngine("m", EngineKind.OLLAMA): GIB,
    }
    assert set(estimate_errors(rows)) == set(seen_bytes(rows))


def test_the_error_of_a_model_is_the_median_of_its_loads() -> None:
    total = replace(REPORTED, overhead=DEFAULT).total
    rows = [
        replace(record(None, at), measured_bytes=measured)
        for at, measured in enumerate([total, 2 * total, total // 2, None])
    ]
    assert estimate_errors(rows) == {ModelOnEngine("m", LLAMA_CPP): pytest.approx(0.5)}
    assert estimate_errors(rows[3:]) == {}


def test_cold_and_warm_loads_are_expected_apart() -> None:
    loads = [LoadRecord(at, "m", at + 1, GIB, Warmth.COLD) for at in range(9)]
    loads.append(LoadRecord(0, "m", 0.5, GIB, Warmth.WARM))
    assert expected_load_times(reversed(loads)) == {"m": LoadTimes(cold_s=7, warm_s=0.5)}


def test_a_learned_overhead_replaces_the_rule_on_devices_of_its_name() -> None:
    rules = BudgetRules(overhead_bytes=DEFAULT, overheads={CARD_A: 300 * MIB})
    card = Device(DeviceId("GPU-0"), DeviceKind.GPU, "A")
    assert overhead_bytes(card, rules, LLAMA_CPP) == 300 * MIB
    assert overhead_bytes(card, rules, EngineKind.VLLM) == DEFAULT
    assert overhead_bytes(replace(card, name="B"), rules, LLAMA_CPP) == DEFAULT
    assert overhead_bytes(Device(HOST_ID, DeviceKind.HOST, "A"), rules, LLAMA_CPP) == 0
    assert hash(rules) == hash(replace(rules))
    assert rules != BudgetRules(overhead_bytes=DEFAULT)
