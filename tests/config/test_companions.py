"""Models that the engine of another one serves with adapters of their own."""

from pathlib import Path

import pytest

from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.settings import read_configuration
from cotenant.domain.engines import Adapter
from cotenant.domain.errors import BadSetting
from tests.support.engines.fake_programs import hugging_face_folder
from tests.support.models.adapters import build_tiny_lora
from tests.support.models.gguf_models import build_tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_tiny_llama(tmp_path / "m.gguf")
    for seed, name in enumerate(["a", "b", "c"], 1):
        build_tiny_lora(tmp_path / name, seed=seed)
    return tmp_path


def read(folder: Path, text: str) -> Configuration:
    path = folder / "cotenant.yaml"
    path.write_text(text, encoding="utf-8")
    return read_configuration(path, environment={})


def chosen(entry: ModelEntry, name: str) -> list[tuple[int, float]]:
    """Which adapters a request under a name is for, by their places."""
    rules = entry.rules if name == entry.name else entry.variants[name]
    return [(each["id"], each["scale"]) for each in rules.set["lora"]]


def test_an_entry_with_a_base_is_a_name_of_it_with_adapters_of_its_own(folder: Path) -> None:
    (entry,) = read(
        folder,
        """
models:
- {name: sql, base: qwen, lora: [b], set: {temperature: 0.1}}
- name: qwen
  path: m.gguf
  lora: [{path: a, scale: 0.5}]
  limit: {max_tokens: 50}
  variants: {fast: {strip: [seed]}}
- {name: both, base: qwen, lora: [b, {path: a, scale: 2}, {path: c, scale: -1}]}
""",
    ).models
    assert entry.names == ("qwen", "qwen:fast", "sql", "both")
    assert entry.companions.by_request
    paths = [str(folder / name) for name in "abc"]
    assert entry.companions.adapters == (Adapter(paths[0], 0.5), Adapter(paths[1], 0), Adapter(paths[2], 0))
    assert chosen(entry, "qwen") == chosen(entry, "qwen:fast") == [(0, 0.5), (1, 0), (2, 0)]
    assert chosen(entry, "sql") == [(0, 0), (1, 1), (2, 0)]
    assert chosen(entry, "both") == [(0, 2), (1, 1), (2, -1)]
    assert entry.variants["sql"].set["temperature"] == 0.1
    assert entry.variants["both"].limit == {"max_tokens": 50}
    assert entry.variants["qwen:fast"].strip == ("seed",)
    assert len(entry.signature) == 4
    (alone,) = read(folder, "models: [{path: m.gguf, lora: [a]}]").models
    of_one = alone.request.shape.tensor_bytes - alone.shape.tensor_bytes
    assert entry.request.shape.tensor_bytes - entry.shape.tensor_bytes == 3 * of_one > 0


def test_a_model_with_fixed_adapters_has_no_rules_for_them(folder: Path) -> None:
    (entry,) = read(folder, "models: [{name: qwen, path: m.gguf, lora: [a]}]").models
    assert not entry.companions.by_request
    assert not entry.rules


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("{name: sql, base: gone, lora: [b]}", "no model of an entry is named gone", "Give that model an"),
        ("{name: sql, base: qwen}", "it has no adapter", "Add `lora:`"),
        ("{base: qwen, lora: [b]}", "it has no name", "Add `name:`"),
        ("{name: sql, base: qwen, lora: [b], ctx: 4096}", "ctx is that of its base", "Leave it out."),
        ("{name: sql, base: qwen, lora: [b], path: m.gguf}", "path is that of its base", "Leave it out."),
        ("{name: qwen, base: qwen, lora: [b]}", "the name qwen is taken", "names"),
        ("{name: sql, base: qwen, lora: [gone]}", "does not exist", "path"),
        ("{name: sql, base: v, lora: [b]}", "v, of vllm, takes no adapters by request", "llama.cpp"),
    ],
)
def test_what_cannot_be_served_by_a_base_is_told(folder: Path, text: str, says: str, hint: str) -> None:
    hugging_face_folder(folder / "hf")
    models = f"[{{name: qwen, path: m.gguf}}, {{name: v, engine: vllm, path: hf}}, {text}]"
    with pytest.raises(BadSetting) as raised:
        read(folder, f"models: {models}")
    assert says in raised.value.message
    assert hint in raised.value.hint
