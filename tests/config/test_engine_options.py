from pathlib import Path

import pytest

from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.settings import read_configuration
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineOptions
from cotenant.domain.errors import BadSetting
from cotenant.domain.models import ModelKind
from cotenant.domain.units import GIB
from tests.support.engines.fake_programs import hugging_face_folder
from tests.support.models.gguf_models import build_tiny_llama


def read(folder: Path, text: str) -> Configuration:
    path = folder / "cotenant.yaml"
    path.write_text(text, encoding="utf-8")
    return read_configuration(path, environment={})


def only(folder: Path, text: str) -> ModelEntry:
    (entry,) = read(folder, f"models:\n- {{{text}}}\n").models
    return entry


def test_a_vllm_model_is_read_from_its_folder(tmp_path: Path) -> None:
    hugging_face_folder(tmp_path / "hf")
    entry = only(tmp_path, "engine: vllm, path: hf, sleep: 2, command: [python, -m, vllm]")
    assert entry.name == "hf"
    assert entry.shape.n_layers == 2
    assert entry.shape.tensor_bytes == sum(part.stat().st_size for part in entry.parts[1:]) - header_bytes(
        entry
    )
    assert entry.recipe.engine is EngineKind.VLLM
    assert entry.options == EngineOptions(command=("python", "-m", "vllm"), sleep=2)


@pytest.mark.parametrize(
    ("told", "n_ctx"),
    [("", 512), (", ctx: 256", 256), (", ctx: 4096", 4096)],
    ids=["the default is cut to what the model takes", "less is less", "what is said is obeyed"],
)
def test_a_vllm_model_is_asked_for_no_more_context_than_it_takes(
    tmp_path: Path, told: str, n_ctx: int
) -> None:
    config = hugging_face_folder(tmp_path / "hf") / "config.json"
    config.write_text(config.read_text().replace("8192", "512"))
    assert only(tmp_path, f"engine: vllm, path: hf{told}").recipe.n_ctx == n_ctx


def header_bytes(entry: ModelEntry) -> int:
    return 8 + int.from_bytes(entry.parts[1].read_bytes()[:8], "little")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("path: m.gguf, env: {CUDA_VISIBLE_DEVICES: 3}", "`gpus: [3]`"),
        ("engine: command, name: c, command: x, env: {HIP_VISIBLE_DEVICES: '0,1'}", "`gpus: [0,1]`"),
        ("engine: command, name: c, command: x, env: {ROCR_VISIBLE_DEVICES: 1}", "`gpus: [1]`"),
        ("engine: command, name: c, command: x, env: {NVIDIA_VISIBLE_DEVICES: '2'}", "`gpus: [2]`"),
    ],
)
def test_variables_that_show_an_engine_other_gpus_are_refused(tmp_path: Path, text: str, hint: str) -> None:
    build_tiny_llama(tmp_path / "m.gguf")
    with pytest.raises(
        BadSetting, match="other GPUs than those that are planned: `gpus:` says which"
    ) as raised:
        only(tmp_path, text)
    assert hint in raised.value.hint


def test_a_llama_cpp_model_may_have_a_server_of_its_own(tmp_path: Path) -> None:
    build_tiny_llama(tmp_path / "m.gguf")
    server = tmp_path / "llama-server"
    with pytest.raises(BadSetting, match="is not a program"):
        only(tmp_path, "path: m.gguf, llama_server: llama-server")
    server.touch(0o700)
    assert only(tmp_path, "path: m.gguf, llama_server: llama-server").options.command == (str(server),)
    with pytest.raises(BadSetting, match="command takes no llama_server"):
        only(tmp_path, "engine: command, name: c, command: x, llama_server: llama-server")


def test_a_command_has_its_options_and_a_first_guess_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(bytes(1000))
    text = "engine: command, name: c, command: 'server --port {port}', stop: [end, '{pid}'], health: /ready"
    entry = only(tmp_path, f"{text}, path: m.bin")
    assert entry.options == EngineOptions(
        command=("server", "--port", "{port}"), health_path="/ready", stop=("end", "{pid}")
    )
    assert entry.stated_bytes == 1300
    assert only(tmp_path, f"{text}, memory: 6GiB").stated_bytes == 6 * GIB
    assert only(tmp_path, text).stated_bytes is None


def test_an_ollama_model_is_at_its_own_address_or_the_hubs(tmp_path: Path) -> None:
    text = (
        "ollama: {address: 'http://gpu-box:1234'}\n"
        "models:\n"
        "- {engine: ollama, model: 'llama3.2:3b'}\n"
        "- {engine: ollama, name: other, model: x, address: 'http://[::1]:99', kind: embedding}\n"
    )
    configuration = read(tmp_path, text)
    first, second = configuration.models
    assert first.name == "llama3.2:3b"
    assert first.options == EngineOptions(address=Endpoint("gpu-box", 1234), model="llama3.2:3b")
    assert second.options == EngineOptions(address=Endpoint("::1", 99), model="x")
    assert second.shape.kind is ModelKind.EMBEDDING
    assert configuration.ollama is not None
    assert configuration.ollama.address == Endpoint("gpu-box", 1234)


def test_a_remote_model_has_an_address_a_key_and_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", "s3cret")
    entry = only(
        tmp_path,
        "engine: remote, name: gpt, model: gpt-4o, address: 'https://far.example/openai/v1/', "
        "api_key_env: FAR_KEY",
    )
    address = entry.options.address
    assert address is not None
    assert address.url == "https://far.example:443/openai"
    assert (entry.options.model, address.key) == ("gpt-4o", "s3cret")
    assert "s3cret" not in repr(entry)


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("name: x", "it has no path, which llama.cpp needs", "Add `path:`."),
        ("engine: vllm, name: x", "it has no path, which vllm needs", "Add `path:`."),
        ("engine: command, name: x", "it has no command, which command needs", "Add `command:`."),
        ("engine: remote, name: x", "it has no address, which remote needs", "Add `address:`."),
        ("engine: ollama", "it has no name", "Add `name:`."),
        ("path: x.gguf, args: [--host, 0.0.0.0]", "--host is set by Cotenant alone", "Leave it out"),
        ("path: x.gguf, args: [-c, 8192]", "-c changes what the engine takes", "Give it as `ctx:`."),
        ("path: x.gguf, env: {LLAMA_ARG_N_GPU_LAYERS: 3}", "no plan would count it", "`n_gpu_layers:`"),
        ("engine: vllm, path: hf, env: {VLLM_API_KEY: k}", "VLLM_API_KEY is set by Cotenant", "Leave"),
        ("path: x.gguf, env: {LLAMA_ARG_MEDIA_PATH: /}", "LLAMA_ARG_MEDIA_PATH is set", "Leave"),
        ("engine: ollama, name: x, ctx: 4096", "ollama takes no ctx", "Leave it out."),
        ("engine: remote, name: x, address: 'http://a', memory: 6GiB", "remote takes no memory", "Leave"),
        ("engine: remote, name: x, address: 'http://me:pw@a'", "it has a user", "api_key"),
        ("engine: remote, name: x, address: 'http://a#b'", "after #", "Leave it out"),
        ("engine: remote, name: x, address: 'ftp://a'", "it is not a URL", "http://host:port"),
        ("path: x.gguf, sleep: 1", "llama.cpp takes no sleep", "Leave it out."),
        ("path: x.gguf, command: [server, -x]", "llama.cpp takes no command", "`llama_server:` and more arg"),
        ("engine: command, name: x, command: [a], health: ready", "is not the path of a URL", "/health"),
        ("engine: command, name: x, command: [a], memory: 6", "has no unit", "6.8GiB"),
        ("engine: vllm, path: hf, cache_type_k: q4_0", "vllm keeps no KV cache in q4_0", "q8_0"),
        ("engine: vllm, path: hf, tensor_split: '1,2'", "vllm takes no tensor_split", "Leave it out."),
        ("engine: vllm, path: cotenant.yaml", "is a file", "Hugging Face folder"),
        ("engine: remote, name: x, address: 'http://a', api_key_env: NOWHERE_SET", "NOWHERE_SET", "Set it"),
    ],
)
def test_what_does_not_go_with_an_engine_is_told(tmp_path: Path, text: str, says: str, hint: str) -> None:
    hugging_face_folder(tmp_path / "hf")
    with pytest.raises(BadSetting) as caught:
        only(tmp_path, text)
    assert "cotenant.yaml, line 2" in caught.value.message
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.problems[0].endswith(f"({hint})") is hint.startswith("Give it as")


@pytest.mark.parametrize("key", ["ctx", "n_ctx", "kv_unified"])
def test_a_recipe_key_that_an_engine_does_not_take_is_refused_once_as_it_is_written(
    tmp_path: Path, key: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        only(tmp_path, f"engine: remote, name: x, address: 'http://a', parallel: 1, {key}: 1")
    assert [each.rpartition(": ")[2] for each in caught.value.problems] == [f"remote takes no {key}"]
