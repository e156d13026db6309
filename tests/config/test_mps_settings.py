"""`devices.mps` and what a model says of its share of a card."""

import pytest

from cotenant.config.changes import diff
from cotenant.domain.devices import MpsGroup, MpsMode
from cotenant.domain.errors import BadSetting
from cotenant.domain.units import MIB
from tests.config.conftest import Reader

MODEL = "models:\n- path: models/tiny.gguf\n"


def test_mps_is_automatic_and_for_all_cards_unless_told_otherwise(read: Reader) -> None:
    devices = read("").devices
    assert (devices.mps, devices.mps_group) == (MpsMode.AUTO, MpsGroup.ALL)
    devices = read("devices: {mps: off, mps_group: card}").devices
    assert (devices.mps, devices.mps_group) == (MpsMode.OFF, MpsGroup.CARD)
    assert read("", {"COTENANT_MPS": "required"}).devices.mps is MpsMode.REQUIRED
    assert read("devices: {mps: off}", flags={"mps": MpsMode.AUTO}).devices.mps is MpsMode.AUTO


@pytest.mark.parametrize(("text", "percent"), [("30%", 30), ("30", 30), ("100 %", 100)])
def test_a_share_of_the_multiprocessors_is_a_percentage(read: Reader, text: str, percent: int) -> None:
    assert read(f"{MODEL}  mps_threads: {text}").models[0].mps_threads_percent == percent


def test_a_model_has_a_margin_of_memory_or_no_ceiling(read: Reader) -> None:
    assert read(MODEL).models[0].mps_margin_bytes == 512 * MIB
    assert read(f"{MODEL}  mps_memory_margin_mib: 64").models[0].mps_margin_bytes == 64 * MIB
    assert read(f"{MODEL}  mps_memory_margin_mib: none").models[0].mps_margin_bytes is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mps_threads: 0", "0 is not a percentage"),
        ("mps_threads: 101%", "101% is not a percentage"),
        ("mps_threads: half", "half is not a percentage"),
        ("mps_threads: [30]", "one value is expected"),
        ("mps_memory_margin_mib: -1", "-1 is not a whole number"),
        ("mps_memory_margin_mib: some", "some is not a whole number"),
    ],
)
def test_what_is_no_share_is_refused(read: Reader, text: str, told: str) -> None:
    with pytest.raises(BadSetting, match="models") as caught:
        read(f"{MODEL}  {text}")
    assert told in caught.value.message


def test_another_share_loads_a_model_anew(read: Reader) -> None:
    old = read(f"{MODEL}  mps_threads: 30%")
    assert diff(old, read(f"{MODEL}  mps_threads: 40%")).reloaded
    assert diff(old, read(f"{MODEL}  mps_threads: 30%\n  mps_memory_margin_mib: none")).reloaded
