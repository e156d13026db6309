from pathlib import Path

import pytest
from gguf import GGUFReader

from cotenant.demo_model import write_demo_model


def test_the_same_bytes_come_out_every_time(tmp_path: Path) -> None:
    write_demo_model(tmp_path / "a.gguf")
    write_demo_model(tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_weights_are_finite_and_of_the_promised_magnitude(tmp_path: Path) -> None:
    write_demo_model(tmp_path / "a.gguf")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    query = abs(tensors["blk.0.attn_q.weight"].astype("f8"))
    assert query.min() >= 2**-5
    assert query.max() < 2**-4
    assert (tensors["output.weight"][:259] == 0).all()
    assert (tensors["output_norm.weight"] == 1).all()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_demo_model(tmp_path / "absent" / "a.gguf")
