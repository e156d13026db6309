"""GPUs that a batch system allots to this process by environment variables."""

from pathlib import Path

import pytest

from cotenant.cli.flags import kept_to
from cotenant.cli.main import main
from cotenant.clock import ManualClock
from cotenant.config.watch import Change
from cotenant.daemon.core.inputs import DaemonInputs
from cotenant.domain.devices import Inventory
from cotenant.domain.errors import UnknownDevice
from cotenant.hardware.gpus.amd import AmdProbe
from cotenant.hardware.gpus.nvml import NvmlProbe
from tests.support.gpus.fake_amdsmi import AmdCard, StandInAmdsmi
from tests.support.gpus.fake_nvml import PaperCard, StandInNvml


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA", "HIP", "ROCR"):
        monkeypatch.delenv(f"{name}_VISIBLE_DEVICES", raising=False)


def amd() -> Inventory:
    cards = [AmdCard(f"GPU-000000000000000{n}", hip_id=n, bdf=f"0000:0{n}:00.0") for n in range(4)]
    return AmdProbe(ManualClock(), StandInAmdsmi(*cards)).inventory()


def nvidia() -> Inventory:
    cards = [PaperCard(f"GPU-{n}aaa", bus_id=f"00000000:0{n}:00.0") for n in range(4)]
    return NvmlProbe(ManualClock(), StandInNvml(*cards)).inventory()


@pytest.mark.parametrize(
    ("variables", "indices"),
    [
        ({}, [0, 1, 2, 3]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0000000000000003,1"}, [1, 3]),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, [0, 2]),
        ({"CUDA_VISIBLE_DEVICES": "3"}, [3]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "3"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, [3]),
        ({"HIP_VISIBLE_DEVICES": "1,7,2"}, [1]),
    ],
)
def test_amds_cards_are_kept_to_those_that_rocm_would_show(
    variables: dict[str, str], indices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    kept = kept_to(amd(), [], described=None)

    assert [device.index for device in kept.devices] == indices


@pytest.mark.parametrize("variable", ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_a_list_that_begins_with_nothing_known_hides_every_card(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "-1")

    kept = kept_to(amd(), [], described=None)

    assert not kept.has_gpus
    assert kept.problems == (f"{variable}='-1' hides every GPU",)


def test_rocms_variables_mean_nothing_for_nvidias_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2aaa")

    assert [device.index for device in kept_to(nvidia(), [], described=None).devices] == [2]


def test_devices_are_those_allotted_by_the_drivers_indices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert [device.index for device in kept_to(nvidia(), ["2"], described=None).devices] == [2]
    with pytest.raises(UnknownDevice, match="'1' names no device"):
        kept_to(nvidia(), ["1"], described=None)


def test_what_a_list_loses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,9,2")
    kept = kept_to(nvidia(), [], described=None)
    assert [device.index for device in kept.devices] == [1]
    assert "names no GPU with '9'" in kept.problems[0]


def test_a_daemon_of_many_models_keeps_to_what_is_allotted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[DaemonInputs] = []
    cards = [PaperCard(f"GPU-{n}aaa", bus_id=f"00000000:0{n}:00.0") for n in range(4)]
    monkeypatch.setattr(
        "cotenant.hardware.gpus.inventory.probe",
        lambda described, clock: NvmlProbe(clock, StandInNvml(*cards)),
    )
    monkeypatch.setattr("cotenant.daemon.main.run", lambda inputs, *others: runs.append(inputs))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert main(["serve", "--models-dir", str(tmp_path)]) == 0
    (inputs,) = runs
    assert inputs.reread is not None
    for configuration in (inputs.configuration, inputs.reread(Change())):
        # What watches the cards selects by this at each reading.
        assert configuration.devices.use == ("GPU-0aaa", "GPU-2aaa")
