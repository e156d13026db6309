from collections.abc import Iterator
from unittest import mock

import pytest

from cotenant.domain.devices import Device
from cotenant.engines.launch.plan import LaunchPlan, host_command
from tests.support.engines.orders import HOST, gpu

AMBIENT = {
    "PATH": "/bin",
    "LLAMA_ARG_CTX_SIZE": "7",
    "LLAMA_API_KEY": "secret",
    "GGML_VK_VISIBLE_DEVICES": "1",
    "AIP_HTTP_PORT": "1",
    "COTENANT_API_KEY": "secret",
    "CUDA_VISIBLE_DEVICES": "0",
}


@pytest.fixture(autouse=True)
def ambient() -> Iterator[None]:
    with mock.patch.dict("os.environ", AMBIENT, clear=True):
        yield


def environment(*devices: Device, **env: str) -> dict[str, str]:
    return host_command(LaunchPlan("tiny", ("sh",), 1, devices, env))[1]


def test_what_would_steer_an_engine_is_left_behind() -> None:
    env = environment(HOST)
    assert env["PATH"] == "/bin"
    assert "secret" not in env.values()
    assert not [name for name in env if name.startswith(("LLAMA_", "AIP_", "COTENANT_"))]
    assert [name for name in env if name.startswith("GGML_")] == ["GGML_NO_BACKTRACE"]


def test_only_the_planned_gpus_are_visible_in_planned_order() -> None:
    env = environment(gpu(2), gpu(0))
    assert env["CUDA_VISIBLE_DEVICES"] == f"{gpu(2).id},{gpu(0).id}"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment(HOST)["CUDA_VISIBLE_DEVICES"] == "-1"


def test_the_operators_variables_win() -> None:
    assert environment(LLAMA_ARG_CTX_SIZE="9")["LLAMA_ARG_CTX_SIZE"] == "9"
