"""`server.request_log`: where it may be, and what is said of where it may not."""

import os
from pathlib import Path

import pytest

from cotenant.cli.main import main
from cotenant.config.settings import read_configuration
from cotenant.demo_model import write_demo_model
from cotenant.domain.errors import BadSetting


def configuration(folder: Path, log: str) -> Path:
    path = folder / "cotenant.yaml"
    path.write_text(f"server: {{request_log: {log}}}\n", encoding="utf-8")
    return path


def test_it_is_off_unless_given_and_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    assert read_configuration(None, environment={}).server.request_log is None
    found = read_configuration(configuration(tmp_path, "log.jsonl"), environment={})
    assert found.server.request_log == tmp_path / "log.jsonl"
    by_variable = read_configuration(None, environment={"COTENANT_REQUEST_LOG": "here.jsonl"})
    assert by_variable.server.request_log == Path.cwd() / "here.jsonl"


@pytest.mark.parametrize("log", ["gone/log.jsonl", "."])
def test_a_place_where_no_file_can_be_is_refused_at_the_start(tmp_path: Path, log: str) -> None:
    with pytest.raises(BadSetting, match=r"line 1: server\.request_log: .* cannot be a file"):
        read_configuration(configuration(tmp_path, log), environment={})


def test_so_is_the_flag_of_a_single_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("COTENANT_")]:
        monkeypatch.delenv(name)
    model = tmp_path / "tiny.gguf"
    write_demo_model(model)
    log = tmp_path / "gone" / "log.jsonl"
    assert main(["serve", str(model), "--gpus", "4GiB", "--request-log", str(log)]) == 2
    assert f"--request-log: {log} cannot be a file" in capsys.readouterr().err
