"""`--profile low-memory` on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from cotenant.cli.main import main
from tests.support.models.gguf_models import REAL_SHAPES


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return REAL_SHAPES["llama-8b"](tmp_path_factory.mktemp("models") / "llama-8b.gguf")


def plan(llama: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    main(["plan", str(llama), "--json", *flags])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_saves_what_the_page_on_it_says(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "low-memory.md").read_text()
    whole = plan(llama, capsys, "--gpus", "24GiB")["devices"][0]
    small = plan(llama, capsys, "--gpus", "24GiB", "--profile", "low-memory")["devices"][0]

    totals = [round(device["planned_bytes"] / 2**20) for device in (whole, small)]
    assert (
        "| Llama 3.1 8B | 4,403 | 512 | 112 | {:,} | 136 | 28 | {:,} | {:,} |".format(
            *totals, totals[0] - totals[1]
        )
        in page
    )


def test_a_model_that_does_not_fit_runs_in_part(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not plan(llama, capsys, "--gpus", "4GiB")["fits"]
    assert plan(llama, capsys, "--gpus", "4GiB", "--profile", "low-memory")["n_gpu_layers"] == 17


def test_flags_and_variables_win_over_the_profile(
    llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COTENANT_PARALLEL", "3")
    main(["plan", str(llama), "--gpus", "24GiB", "--profile", "low-memory", "--n-ctx", "4096"])

    said = capsys.readouterr().out
    assert "4,096 tokens for 3 slots" in said
    assert "KV q8_0/q8_0" in said


def test_an_unknown_profile_is_refused_in_one_line(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(llama), "--profile", "tiny"]) == 2
    assert "--profile 'tiny' is not known" in capsys.readouterr().err
