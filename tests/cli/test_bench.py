"""`cotenant bench`: against a daemon with three real models, and against what is wrong."""

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cotenant.cli.main import main
from cotenant.demo_model import write_demo_model
from tests.support.daemon.serving import Serving
from tests.support.http.chat_site import ChatSite, running_beside


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("COTENANT_")]:
        monkeypatch.delenv(name)


def states(address: str) -> dict[str, str]:
    with urllib.request.urlopen(f"{address}/api/models", timeout=60) as answer:
        told: dict[str, Any] = json.load(answer)
    return {model["name"]: model["state"] for model in told["models"]}


@pytest.mark.engine
@pytest.mark.slow
def test_three_real_models_are_measured_drawn_and_left_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("ada", "ben", "cleo"):
        write_demo_model(models / f"{name}.gguf")
    plot = tmp_path / "bench.svg"
    flags = ["serve", "--models-dir", str(models), "--port", "0", "--parallel", "1", "--n-ctx", "512"]
    with Serving(flags, tmp_path / "state") as daemon:
        address = daemon.address()
        asked = ["--requests", "1", "--max-tokens", "8", "--prompt-tokens", "16", "--plot", str(plot)]
        assert (
            main(["bench", "ada", "ben", "cleo", "gone", "--address", f"{address}/v1", *asked, "--json"]) == 0
        )
        assert states(address) == {"ada": "cold", "ben": "cold", "cleo": "cold"}
        assert daemon.terminate() == 0
    told = json.loads(capsys.readouterr().out)
    assert [len(phase["models"]) for phase in told["phases"]] == [1, 1, 1, 2, 3]
    assert all(result["failures"] == 0 for phase in told["phases"] for result in phase["results"])
    assert [(wait["model"], wait["instead_of"]) for wait in told["waits"]] == [
        ("ada", None), ("ben", None), ("cleo", None), ("ben", "ada"), ("cleo", "ben"), ("ada", "cleo"),
    ]  # fmt: skip
    held = [sum(sample["bytes_by_model"].values()) for sample in told["memory"]]
    assert max(held) > min(held), "models were loaded and unloaded meanwhile"
    (left_out,) = told["left_out"]
    assert left_out.startswith("gone does not answer: status 404: the model 'gone' is not served here")
    text = "".join(ElementTree.parse(plot).getroot().itertext())
    assert "Tokens per second over time" in text
    assert "Memory held over time" in text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--plot", "picture.gif"], "picture.gif is neither SVG nor PNG"),
        (["--plot", "nowhere/at/all.svg"], "cannot be written"),
        (["--requests", "0"], "'0' is not a whole number from 1"),
        (["--concurrency", "many"], "'many' is not a whole number"),
        (["--address", "ftp://there"], "is not an address"),
        (["--address", "http://127.0.0.1:8080/v1?x=1"], "is not an address"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["bench", *flags])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert told in capsys.readouterr().err


def test_without_the_extra_a_picture_is_refused_with_the_command_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "--plot", "picture.svg"]) == 2
    assert "pip install 'cotenant[plot]'" in capsys.readouterr().err


def test_a_png_is_drawn_where_the_name_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "bench.PNG"
    asked = ["--requests", "1", "--max-tokens", "4", "--prompt-tokens", "4", "--plot", str(plot)]
    with running_beside(ChatSite(("a",))) as site:
        assert main(["bench", "a", "--address", site.url, *asked]) == 0
    assert "tokens/s" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_address_where_nobody_listens_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--address", "http://127.0.0.1:1"]) == 1
    assert "nothing answers at http://127.0.0.1:1: " in capsys.readouterr().err
