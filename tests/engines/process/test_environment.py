from cotenant.engines.process.environment import engine_environment
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


def test_what_would_steer_an_engine_is_left_behind() -> None:
    env = engine_environment(AMBIENT, [HOST], {})
    assert env["PATH"] == "/bin"
    assert "secret" not in env.values()
    assert not [name for name in env if name.startswith(("LLAMA_", "AIP_", "COTENANT_"))]
    assert [name for name in env if name.startswith("GGML_")] == ["GGML_NO_BACKTRACE"]


def test_only_the_planned_gpus_are_visible_in_planned_order() -> None:
    env = engine_environment(AMBIENT, [gpu(2), gpu(0)], {})
    assert env["CUDA_VISIBLE_DEVICES"] == f"{gpu(2).id},{gpu(0).id}"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert engine_environment(AMBIENT, [HOST], {})["CUDA_VISIBLE_DEVICES"] == "-1"


def test_the_operators_variables_win() -> None:
    assert engine_environment(AMBIENT, [], {"LLAMA_ARG_CTX_SIZE": "9"})["LLAMA_ARG_CTX_SIZE"] == "9"
