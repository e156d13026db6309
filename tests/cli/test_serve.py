"""`cotenant serve MODEL`: a configuration of one model, under the name that `models_dir` gives its file."""

from pathlib import Path

import pytest

from cotenant.cli.main import build_parser, main
from cotenant.cli.serve import one_model
from cotenant.config.settings import read_configuration
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.models.vision import build_tiny_projector


@pytest.mark.parametrize(
    ("file", "former"),
    [
        ("tiny.gguf", None),
        ("My Model (v2).gguf", "My Model (v2)"),
        ("tiny-1-of-2.gguf", "tiny"),
        ("tiny.v1", None),
    ],
)
def test_a_file_has_the_name_that_models_dir_gives_it_and_answers_to_its_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, former: str | None
) -> None:
    build_tiny_llama(tmp_path / file)
    monkeypatch.chdir(tmp_path)
    entry = one_model(build_parser().parse_args(["serve", file]), Path(file)).models[0]

    if file.endswith(".gguf"):
        flags = {"models_dir": tmp_path}
        assert [entry.name] == [
            each.name for each in read_configuration(None, environment={}, flags=flags).models
        ]
    assert entry.aliases == (() if former is None else (former,))
    assert (entry.path, entry.preload, entry.keep_alive_s) == (tmp_path / file, True, None)


def test_a_name_that_is_given_is_kept_as_it_is(tmp_path: Path) -> None:
    path = build_tiny_llama(tmp_path / "My Model.gguf")
    entry = one_model(build_parser().parse_args(["serve", "--name", "my model", str(path)]), path).models[0]
    assert (entry.name, entry.aliases) == ("my model", ())


def test_one_model_stays_for_good_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build_tiny_llama(tmp_path / "m.gguf")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    given = build_parser().parse_args(["serve", "--keep-alive", "2m", "--max-loaded", "2", str(path)])
    configuration = one_model(given, path)
    assert (configuration.models[0].keep_alive_s, configuration.scheduling.max_loaded) == (120, 2)


def test_one_model_is_served_with_the_projector_beside_it_unless_told_not_to(tmp_path: Path) -> None:
    path = build_tiny_llama(tmp_path / "m.gguf")
    mmproj = build_tiny_projector(tmp_path / "mmproj-F16.gguf")
    for flags, projector in (([], mmproj), (["--mmproj", "none"], None), (["--mmproj", str(mmproj)], mmproj)):
        given = build_parser().parse_args(["serve", *flags, str(path)])
        assert one_model(given, path).models[0].projector_path == projector


@pytest.mark.parametrize("also", ["--config", "--models-dir"])
def test_one_model_and_a_source_of_many_exclude_each_other(
    also: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = build_tiny_llama(tmp_path / "m.gguf")
    assert main(["serve", "--model", str(path), also, str(tmp_path)]) == 2
    assert also in capsys.readouterr().err
