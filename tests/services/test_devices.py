"""What services cannot have of a card, by where its numbers come from."""

import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from cotenant.clock import ManualClock
from cotenant.domain.devices import Device, DeviceId, DeviceKind, Inventory, Reading
from cotenant.domain.units import GIB, MIB
from cotenant.domain.vendors import InventorySource
from cotenant.hardware.gpus.inventory import probe
from cotenant.services.devices import service_devices
from cotenant.services.model import Assignment, Service
from tests.services.assign.service_cases import CLIP, ENRICHMENT, FIVE, LLM


def occupied_mib(
    uses: Sequence[tuple[int | None, int]], services: Sequence[Service] = (), *pins: Assignment
) -> list[float]:
    """What services cannot have of GPUs, of which MiB are in use (or unknown) and MiB are claimed."""
    ids = [DeviceId(f"GPU-{index}") for index in range(len(uses))]
    inventory = Inventory(
        InventorySource.NVML,
        tuple(Device(id_, DeviceKind.GPU, "card", index, 24 * GIB) for index, id_ in enumerate(ids)),
        {
            id_: Reading(id_, 0.0, None if used is None else used * MIB)
            for id_, (used, _) in zip(ids, uses, strict=True)
        },
    )
    claims = {id_: claimed * MIB for id_, (_, claimed) in zip(ids, uses, strict=True)}
    return [each.occupied_bytes / MIB for each in service_devices(inventory, claims, services, pins)]


def test_on_the_reference_hardware_nothing_on_the_large_card_is_foreign() -> None:
    assert occupied_mib([(19304, 0), (329, 0)], FIVE) == [0, 329]


def test_what_services_cannot_account_for_is_foreign() -> None:
    assert occupied_mib([(24000, 0), (329, 0)], [LLM], Assignment(LLM.name, 0))[0] == 24000 - 22221


def test_the_schedulers_claims_are_occupied_and_not_the_services() -> None:
    assert occupied_mib([(10000, 8000)], [CLIP], Assignment(CLIP.name, 0)) == [8000 + 2000 - 1229]


def test_claims_count_before_they_are_used_and_where_use_is_unknown() -> None:
    assert occupied_mib([(100, 8000)]) == [8000]
    assert occupied_mib([(None, 8000)]) == [8000]


def test_a_running_budget_bounds_what_is_the_services_own() -> None:
    pinned = Assignment(ENRICHMENT.name, 0, DeviceId("GPU-1"), 3.5)
    assert occupied_mib([(0, 0), (3900, 0)], [ENRICHMENT], pinned)[1] == 3900 - 3584


def test_no_gpus_are_no_trouble() -> None:
    assert occupied_mib([], [CLIP]) == []


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.integers(0, 24000)), st.integers(0, 24000)), min_size=1, max_size=4
    ),
    st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=5),
)
def test_occupied_lies_between_the_claims_and_what_is_in_use(
    uses: list[tuple[int | None, int]], pins: list[int | None]
) -> None:
    pinned = [Assignment(service.name, pin) for service, pin in zip(FIVE, pins, strict=False)]
    found = occupied_mib(uses, FIVE, *pinned)
    for (used, claimed), occupied in zip(uses, found, strict=True):
        assert claimed <= occupied <= max(claimed, used or 0)


def test_a_model_on_a_card_that_is_only_described_is_added_to_what_it_holds():
    inventory = probe("RTX A5500:24564:1024", ManualClock()).inventory()
    (card,) = service_devices(inventory, {inventory.devices[0].id: 8 * GIB}, (), ())
    assert card.occupied_bytes == 9 * GIB


def test_a_model_on_a_card_that_a_file_follows_is_not_counted_twice(tmp_path):
    path = tmp_path / "machine.yaml"
    held = 8 * 1024 + 512
    card = {"name": "RTX A5500", "total_mib": 24564, "used_mib": held}
    path.write_text(json.dumps({"live": True, "gpus": [card]}))
    inventory = probe(str(path), ManualClock()).inventory()
    (seen,) = service_devices(inventory, {inventory.devices[0].id: 8 * GIB}, (), ())
    assert seen.occupied_bytes == held * MIB
