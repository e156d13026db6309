"""`cotenant services import`: real compose files, and a configuration that keeps what it had."""

import os
from pathlib import Path

import pytest
import yaml

from cotenant.cli.main import main
from cotenant.config.settings import read_configuration
from cotenant.domain.units import MIB
from cotenant.services.model import Service, ServiceRole

COMPOSE = """
services:
  ai-llm:
    image: llm
    labels:
      cotenant.vram_mib: 22221
      cotenant.role: llm
      cotenant.latency_critical: "true"
      cotenant.model: "Nemotron-3-Nano-30B (Q4_K_M): fast #1"
    deploy:
      resources:
        reservations:
          devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]
  ai-enrichment:
    image: zoo
    environment: [VRAM_BUDGET_GB=6.8]
    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: all, capabilities: [gpu]}]}}}
  web:
    image: web
"""
SERVICES = (
    Service(
        "ai-llm",
        "Nemotron-3-Nano-30B (Q4_K_M): fast #1",
        22221 * MIB,
        ServiceRole.LLM,
        latency_critical=True,
    ),
    Service("ai-enrichment", vram_bytes=6963 * MIB, budget_env="VRAM_BUDGET_GB", gpu_count="all"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("COTENANT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / "prod").mkdir()
    (tmp_path / "prod" / "docker-compose.prod.yml").write_text(COMPOSE)
    return tmp_path


def run(*argv: str) -> int:
    return main(["services", "import", "prod/docker-compose.prod.yml", *argv])


def test_the_section_is_printed_ready_to_paste(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["services"]["items"][0]["latency_critical"] is True
    (folder / "cotenant.yaml").write_text(printed)
    services = read_configuration(folder / "cotenant.yaml", environment={}).services
    assert services is not None
    assert services.compose_files == (folder / "prod" / "docker-compose.prod.yml",)
    assert services.output_dir == folder / "prod" / "config"
    assert services.items == SERVICES


def test_writing_appends_and_leaves_the_rest_as_it_was(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = "# mine\nserver:   {port: 9000}   # odd spacing\r\n\nmodels_dir: ''  # last line, unended"
    (folder / "deep").mkdir()
    target = folder / "deep" / "c.yaml"
    target.write_bytes(before.replace("models_dir: ''", "devices: {use: all}").encode())
    target.chmod(0o600)
    assert run("--write", "--config", str(target)) == 0
    assert capsys.readouterr().out == f"{target} has 2 services now.\n"
    text = target.read_bytes().decode()
    assert text.startswith(before.replace("models_dir: ''", "devices: {use: all}") + "\r\n")
    assert target.stat().st_mode & 0o777 == 0o600
    configuration = read_configuration(target, environment={})
    assert configuration.server.port == 9000
    assert configuration.services is not None
    assert configuration.services.compose_files == (folder / "prod" / "docker-compose.prod.yml",)
    assert [path.name for path in target.parent.iterdir()] == ["c.yaml"]


def test_writing_makes_the_file_where_there_is_none_and_refuses_a_second_time(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--write") == 0
    written = (folder / "cotenant.yaml").read_text()
    assert written.startswith("services:\n")
    assert run("--write") == 2
    told = capsys.readouterr().err
    assert "has a `services:` section already" in told
    assert (folder / "cotenant.yaml").read_text() == written


@pytest.mark.parametrize(
    "before", ["{server: {port: 1}}\n", "server: {port: 1}\n...\n", "server:\n  - x: [\n"]
)
def test_a_file_that_cannot_be_added_to_is_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], before: str
) -> None:
    (folder / "cotenant.yaml").write_text(before)
    assert run("--write") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert (folder / "cotenant.yaml").read_text() == before


def test_a_link_to_the_configuration_stays_one(folder: Path) -> None:
    (folder / "real.yaml").write_text("server: {port: 1}\n")
    (folder / "cotenant.yaml").symlink_to("real.yaml")
    assert run("--write") == 0
    assert (folder / "cotenant.yaml").is_symlink()
    assert "ai-llm" in (folder / "real.yaml").read_text()


def test_what_an_operator_should_look_at_is_noted_beside(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "prod" / "docker-compose.prod.yml").write_text(
        "services: {a: {image: x, labels: {cotenant.vram_mb: '650'}}}"
    )
    assert run() == 0
    told = capsys.readouterr()
    assert "cotenant.vram_mb is not known" in told.err
    assert "Note" not in told.out


@pytest.mark.parametrize("write", [(), ("--write",)])
@pytest.mark.parametrize("name", ["--remove-orphans", "-f", "'a b'"])
def test_a_name_that_the_configuration_refuses_is_not_shown_as_a_setting(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, write: tuple[str, ...]
) -> None:
    file = folder / "prod" / "docker-compose.prod.yml"
    file.write_text(f"services: {{{name}: {{image: x, gpus: all}}}}")
    assert run(*write) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "services.items[0].name" in told.err
    assert "cannot be the name of a service" in told.err
    assert not (folder / "cotenant.yaml").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "docker-compose.prod.yml"),
        ("services: [", "docker-compose.prod.yml"),
        ("services: {web: {image: x}}", "no service of these files asks for a GPU"),
    ],
)
def test_compose_files_that_are_no_use_are_one_line_and_a_hint(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str | None, says: str
) -> None:
    path = folder / "prod" / "docker-compose.prod.yml"
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert run("--write") == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 2
    assert not (folder / "cotenant.yaml").exists()
