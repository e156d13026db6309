import json
import os
import struct
from pathlib import Path

import pytest

from cotenant.domain.errors import (
    CorruptModelFile,
    ModelFileMissing,
    NotAModelFile,
    SplitPartMissing,
    UnsupportedModelFile,
)
from cotenant.domain.models import ModelKind
from cotenant.model_files import FileSource, find_projectors, load_model
from tests.support.models.gguf_models import build_tiny_llama, projector


def safetensors(path: Path, name: str, size: int) -> None:
    header = json.dumps({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shards = {}
    for number in (1, 2):
        shard = f"model-{number:05}-of-00002.safetensors"
        tensor = f"model.layers.{number - 1}.mlp.up_proj.weight"
        safetensors(tmp_path / shard, tensor, 1000 * number)
        shards[tensor] = shard
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return tmp_path


def test_a_gguf_file_is_described(tmp_path: Path) -> None:
    path = build_tiny_llama(tmp_path / "tiny.gguf")
    shape = load_model(path)
    assert shape.kind is ModelKind.TEXT
    assert shape.n_layers == 4
    assert shape.file_bytes == path.stat().st_size


def test_a_hugging_face_folder_is_described(folder: Path) -> None:
    shape = load_model(folder)
    assert [layer.weight_bytes for layer in shape.layers] == [1000, 2000]


def test_a_folder_without_an_index_takes_every_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    assert load_model(folder).tensor_bytes == 3000


def test_an_absent_shard_is_named(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SplitPartMissing, match=r"model-00002-of-00002\.safetensors is missing"):
        load_model(folder)


def test_a_broken_configuration_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(CorruptModelFile, match=r"config\.json does not parse"):
        load_model(folder)


def test_a_plain_folder_points_at_its_gguf_files(tmp_path: Path) -> None:
    build_tiny_llama(tmp_path / "tiny.gguf")
    with pytest.raises(NotAModelFile, match="is a directory") as caught:
        load_model(tmp_path)
    assert "tiny.gguf" in caught.value.hint


def test_an_absent_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFileMissing, match="does not exist"):
        load_model(tmp_path / "nothing.gguf")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    path = build_tiny_llama(tmp_path / "tiny.gguf")
    path.chmod(0)
    with pytest.raises(ModelFileMissing, match="may not be read"):
        load_model(path)


def test_a_read_that_fails_says_so() -> None:
    with pytest.raises(ModelFileMissing, match="cannot be read: Input/output error"):
        load_model(Path("/proc/self/mem"))


def test_a_path_through_a_file_says_so(tmp_path: Path) -> None:
    path = build_tiny_llama(tmp_path / "tiny.gguf")
    with pytest.raises(ModelFileMissing, match="Not a directory"):
        load_model(path / "more.gguf")


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(ModelFileMissing, match="not a regular file"):
        load_model(pipe)


def test_a_lone_safetensors_file_points_at_its_folder(folder: Path) -> None:
    with pytest.raises(NotAModelFile, match="a safetensors file"):
        load_model(folder / "model-00001-of-00002.safetensors")


def test_projectors_beside_a_model_are_found(tmp_path: Path) -> None:
    model = build_tiny_llama(tmp_path / "tiny.gguf")
    beside = projector(tmp_path / "mmproj-tiny-f16.gguf")
    (tmp_path / "mmproj.txt").touch()
    assert find_projectors(model) == (beside,)
    assert load_model(beside).kind is ModelKind.PROJECTOR
    assert find_projectors(tmp_path / "absent" / "x.gguf") == ()


def test_an_empty_model_is_unsupported_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(UnsupportedModelFile, match="names no architecture"):
        load_model(path)


def test_files_are_closed(tmp_path: Path) -> None:
    path = build_tiny_llama(tmp_path / "tiny.gguf")
    before = len(os.listdir("/proc/self/fd"))
    load_model(path)
    with pytest.raises(ModelFileMissing):
        FileSource(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
