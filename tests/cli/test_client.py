"""Where the commands that ask a daemon look for it."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from cotenant.cli.client import Daemon, add_daemon_options


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("COTENANT_ADDRESS", "COTENANT_CONFIG", "COTENANT_HOST", "COTENANT_PORT", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


def address(*flags: str) -> str:
    parser = argparse.ArgumentParser()
    add_daemon_options(parser)
    return Daemon(parser.parse_args(flags)).address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server: {port: 9001}", "http://127.0.0.1:9001"),
        ("server: {host: 0.0.0.0, port: 9001}", "http://127.0.0.1:9001"),
        ("server: {host: '::'}", "http://[::1]:8080"),
        ("server: {host: box, port: 0}", "http://box:8080"),
        ("models: []", "http://127.0.0.1:8080"),
        ("server: {port: x}", "http://127.0.0.1:8080"),
        ("server: [", "http://127.0.0.1:8080"),
    ],
)
def test_it_is_looked_for_where_serve_would_listen(text: str, expected: str, tmp_path: Path) -> None:
    assert address() == "http://127.0.0.1:8080"
    (tmp_path / "cotenant.yaml").write_text(text)
    assert address() == expected
    assert address("--address", "other:1") == "http://other:1"


def test_variables_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cotenant.yaml").write_text("server: {port: 9001}")
    monkeypatch.setenv("COTENANT_PORT", "9002")
    assert address() == "http://127.0.0.1:9002"
    monkeypatch.setenv("COTENANT_ADDRESS", "http://there:3")
    assert address() == "http://there:3"


def test_a_file_that_others_may_write_sends_nobody_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "cotenant.yaml").write_text("server: {host: evil.example}")
    (tmp_path / "cotenant.yaml").chmod(0o666)
    assert address() == "http://127.0.0.1:8080"


def test_the_package_runs_as_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "cotenant", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("cotenant ")
