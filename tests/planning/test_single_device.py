"""Models whose bytes are stated or measured: whole on one device, or refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.devices import HOST_ID, Device, DeviceKind
from cotenant.domain.models import Recipe
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.units import GIB
from cotenant.planning.single_device import UNKNOWN_SHARE, place_on_one_device, place_without_memory
from tests.support.models.shapes import dense, gpu

HOST = Budget(Device(HOST_ID, DeviceKind.HOST, "host RAM", total_bytes=64 * GIB), 32 * GIB, 32 * GIB)


def placed(needed: int | None, *budgets: Budget) -> Placement | Refusal:
    return place_on_one_device("model", dense(2, GIB), Recipe(), needed, budgets)


@pytest.mark.parametrize(
    ("needed_gib", "rooms_gib", "device"), [(4, [8, 8], 0), (4, [2, 8], 1), (8, [8, 9], 0)]
)
def test_it_lies_on_the_first_gpu_with_room(needed_gib: int, rooms_gib: list[int], device: int) -> None:
    result = placed(needed_gib * GIB, HOST, *(gpu(i, room * GIB) for i, room in enumerate(rooms_gib)))
    assert isinstance(result, Placement)
    assert [(share.device.index, share.parts.total) for share in result.used_shares] == [
        (device, needed_gib * GIB)
    ]


def test_host_ram_is_used_only_where_it_is_the_sole_device() -> None:
    assert isinstance(placed(GIB, HOST), Placement)
    refused = placed(9 * GIB, HOST, gpu(0, 8 * GIB))
    assert isinstance(refused, Refusal)
    assert "9.0 GiB on one device" in refused.reason


def test_unknown_bytes_get_a_share_of_a_gpu_and_nothing_of_host_ram() -> None:
    result = placed(None, gpu(0, 30 * GIB))
    assert isinstance(result, Placement)
    assert result.used_shares[0].parts.total == int(UNKNOWN_SHARE * 31 * GIB)
    refused = placed(None, HOST)
    assert isinstance(refused, Refusal)
    assert "memory: 6GiB" in refused.reason


def test_a_left_out_device_is_passed_over_and_named() -> None:
    lost = replace(gpu(0, 8 * GIB), left_out="it is lost")
    result = placed(GIB, lost, gpu(1, 8 * GIB))
    assert isinstance(result, Placement)
    assert result.used_shares[0].device.index == 1
    assert "it is lost" in result.warnings[0]
    assert isinstance(placed(GIB, lost), Refusal)


def test_a_model_of_another_machine_takes_nothing() -> None:
    assert place_without_memory("model", Recipe()).used_shares == ()


@given(st.lists(st.integers(0, 20), max_size=4), st.integers(1, 20))
def test_it_is_placed_exactly_if_one_device_has_room(rooms: list[int], needed: int) -> None:
    result = placed(needed, *(gpu(index, room) for index, room in enumerate(rooms)))
    assert isinstance(result, Placement) == any(room >= needed for room in rooms)
