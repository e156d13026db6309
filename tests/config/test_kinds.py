"""Timeouts by what a model is for, and the names of models that were pulled."""

from pathlib import Path

import pytest

from cotenant.domain.errors import BadSetting
from cotenant.domain.models import ModelKind
from tests.config.conftest import Reader
from tests.support.models.gguf_models import build_tiny_embedder, projector

BY_KIND = """
models_dir: all
models:
  - {path: all/named.gguf, timeout: 7s}
defaults:
  timeout: 1m
  timeouts: {vision: 120s, chat: 30s, embeddings: 10s}
"""


@pytest.fixture
def served(folder: Path, tiny: Path) -> Path:
    """A folder of one model of each kind."""
    served = folder / "all"
    (served / "seeing").mkdir(parents=True)
    for name in ("chat", "named", "seeing/vision"):
        (served / f"{name}.gguf").hardlink_to(tiny)
    projector(served / "seeing" / "mmproj-F16.gguf")
    build_tiny_embedder(served / "embed.gguf")
    build_tiny_embedder(served / "rank.gguf", ranks=True)
    return served


def test_a_request_waits_as_long_as_the_kind_of_its_model_says(served: Path, read: Reader) -> None:
    models = {model.name: model for model in read(BY_KIND).models}
    assert {name: model.timeout_s for name, model in models.items()} == {
        "named": 7,
        "chat": 30,
        "vision": 120,
        "embed": 10,
        "rank": 60,
    }
    assert models["rank"].shape.kind is ModelKind.RERANK
    # As for embeddings: a pair of query and document is taken in one micro-batch.
    assert models["rank"].recipe.n_ubatch == models["rank"].recipe.n_batch


def test_kinds_that_only_an_entry_can_state_have_their_timeouts(read: Reader) -> None:
    entries = "".join(
        f"  - {{engine: command, name: {kind}, command: x, kind: {kind}}}\n"
        for kind in ("speech", "transcription", "image", "any")
    )
    timeouts = "defaults: {timeout: 1m, timeouts: {speech: 2m, transcription: 3m, image: 4m}}\n"
    served = read(f"{timeouts}models:\n{entries}").models
    assert [(model.shape.kind.value, model.timeout_s) for model in served] == [
        ("speech", 120),
        ("transcription", 180),
        ("image", 240),
        ("any", 60),
    ]


def test_a_kind_that_there_is_not_is_told_with_its_line(read: Reader) -> None:
    with pytest.raises(BadSetting, match=r"line 2: defaults\.timeouts\.visoin: unknown setting"):
        read("defaults:\n  timeouts: {visoin: 3}")
    with pytest.raises(BadSetting, match=r"defaults\.timeouts\.chat"):
        read("defaults: {timeouts: {chat: soon}}")


def test_a_pulled_model_goes_by_its_name_on_the_hub_too(served: Path, tiny: Path, read: Reader) -> None:
    pulled = served / "org--repo"
    pulled.mkdir()
    for name in ("tiny-Q4_K_M", "plain"):
        (pulled / f"{name}.gguf").hardlink_to(tiny)
    models = {model.name: model.aliases for model in read("models_dir: all").models}
    assert models["tiny-Q4_K_M"] == ("hf.co/org/repo:Q4_K_M",)
    assert models["plain"] == ("hf.co/org/repo",)
    assert models["chat"] == ()
