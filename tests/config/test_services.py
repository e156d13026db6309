from pathlib import Path

import pytest

from cotenant.config.changes import diff
from cotenant.domain.errors import BadSetting
from cotenant.domain.units import MIB
from cotenant.services.model import DeviceNames, OnFailure, Service, ServiceRole, ServicesSettings, Strategy
from tests.config.conftest import Reader

WHOLE = """
services:
  compose:
    files: [docker-compose.prod.yml, more/gpu.yml]
    command: [podman-compose, --podman-run-args, "a b"]
    project: ai
  strategy: isolation_first
  output_dir: generated
  device_ids: uuid
  on_failure: keep
  parallel: 3
  command_timeout: 90s
  items:
    - name: ai-llm
      model: Nemotron-3-Nano-30B (Q4_K_M)
      vram_mib: 22221
      role: llm
      latency_critical: true
    - name: ai-enrichment
      vram: 6.8GiB
      vram_budget_env: VRAM_BUDGET_GB
      enabled: no
      health: 8094
      health_timeout: 5m
"""
SHORT = "services: {compose: {files: docker-compose.yml}, items: [{name: a}]}"


def settings_of(read: Reader, text: str) -> ServicesSettings:
    settings = read(text).services
    assert settings is not None
    return settings


def test_the_whole_section_is_understood(read: Reader, folder: Path) -> None:
    assert settings_of(read, WHOLE) == ServicesSettings(
        compose_files=(folder / "docker-compose.prod.yml", folder / "more" / "gpu.yml"),
        output_dir=folder / "generated",
        command=("podman-compose", "--podman-run-args", "a b"),
        project="ai",
        strategy=Strategy.ISOLATION_FIRST,
        items=(
            Service(
                "ai-llm",
                model="Nemotron-3-Nano-30B (Q4_K_M)",
                vram_bytes=22221 * MIB,
                role=ServiceRole.LLM,
                latency_critical=True,
            ),
            Service(
                "ai-enrichment",
                vram_bytes=round(6.8 * 1024 * MIB),
                enabled=False,
                budget_env="VRAM_BUDGET_GB",
                health_url="http://127.0.0.1:8094/health",
                health_timeout_s=300.0,
            ),
        ),
        device_ids=DeviceNames.UUID,
        on_failure=OnFailure.KEEP,
        parallel=3,
        command_timeout_s=90.0,
    )


def test_what_is_left_out_has_its_default_and_no_section_is_none(read: Reader, folder: Path) -> None:
    assert settings_of(read, SHORT) == ServicesSettings(
        compose_files=(folder / "docker-compose.yml",),
        output_dir=folder / "config",
        items=(Service("a"),),
    )
    assert read("server: {port: 1}").services is None


def test_files_are_meant_against_the_folder_and_a_tilde_is_the_home(
    read: Reader, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    settings = settings_of(
        read, "services: {compose: {files: [~/a/compose.yml, deep/b.yml], command: ~/bin/up -x}}"
    )
    assert settings.compose_files == (Path("/somewhere/a/compose.yml"), folder / "deep" / "b.yml")
    assert settings.output_dir == Path("/somewhere/a/config")
    assert settings.command == ("/somewhere/bin/up", "-x")


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ("auto", None),
        ("[auto]", None),
        ("docker compose", ("docker", "compose")),
        ("'\"my compose\" --flag=a;rm'", ("my compose", "--flag=a;rm")),
        ("[docker, compose, --ansi, never]", ("docker", "compose", "--ansi", "never")),
    ],
)
def test_the_compose_command_is_found_or_an_argument_vector(
    read: Reader, given: str, command: tuple[str, ...] | None
) -> None:
    text = f"services: {{compose: {{files: a.yml, command: {given}}}}}"
    assert settings_of(read, text).command == command


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("8090", "http://127.0.0.1:8090/health"),
        ("'8090/ready?deep=1'", "http://127.0.0.1:8090/ready?deep=1"),
        ("':8090'", "http://127.0.0.1:8090/health"),
        ("https://host:1/x", "https://host:1/x"),
    ],
)
def test_health_is_a_url_or_a_port(read: Reader, given: str, url: str) -> None:
    text = f"services: {{compose: {{files: a.yml}}, items: [{{name: a, health: {given}}}]}}"
    assert settings_of(read, text).items[0].health_url == url


def item(text: str) -> str:
    return f"services:\n  compose: {{files: a.yml}}\n  items:\n    - {{name: a}}\n    - {text}\n"


@pytest.mark.parametrize(
    ("text", "line", "what", "hint"),
    [
        ("services:\n  compose: {}", 2, "services.compose: it has no files", "Add `files:`."),
        ("services:\n  compose: {files: []}", 2, "services.compose.files: the list is empty", "[first"),
        (
            "services:\n  compose: {files: a.yml, fils: b}",
            2,
            "services.compose.fils: unknown setting",
            "mean files?",
        ),
        ("services: {}", 1, "services: it has no compose", "Add `compose:`."),
        ("services: [a]", 1, "services: ['a'] is not a mapping", "docs/configuration.md"),
        (
            'services:\n  compose: {files: a, command: "\'x"}',
            2,
            "services.compose.command: 'x has an unclosed quotation",
            "list",
        ),
        (
            "services:\n  compose: {files: a, command: []}",
            2,
            "compose.command: the command or one",
            "[podman",
        ),
        (
            "services:\n  compose: {files: a, project: A B}",
            2,
            "A B cannot be the name of a project",
            "lowercase",
        ),
        (
            item("{name: a}"),
            5,
            "services.items[1].name: the service a is listed already, as items[0]",
            "Keep",
        ),
        (item("{name: b, vram_mib: -5}"), 5, "services.items[1].vram_mib: -5 is not a whole number", "digit"),
        (item("{name: b, vram: 7}"), 5, "services.items[1].vram: 7 has no unit", "6.8GiB"),
        (item("{name: b, vram: -7GiB}"), 5, "'-7GiB' is not a size", "unit"),
        (
            item("{name: b, vram: 7GiB, vram_mib: 7}"),
            5,
            "services.items[1]: it has both vram and",
            "Keep one",
        ),
        (
            item("{name: b, vram_mb: 5}"),
            5,
            "services.items[1].vram_mb: unknown setting",
            "Did you mean vram_m",
        ),
        (item("{vram_mib: 5}"), 5, "services.items[1]: it has no name", "Add `name:`."),
        (item("{name: a/b}"), 5, "a/b cannot be the name of a service", "letters"),
        (item("{name: b, role: llmm}"), 5, "services.items[1].role: llmm is not known", "Did you mean llm?"),
        (item("{name: b, vram_budget_env: 1X}"), 5, "1X cannot be the name of a variable", "VRAM_BUDGET_GB"),
        (item("{name: b, health: 0}"), 5, "services.items[1].health: 0 is neither a port nor a URL", "8090"),
        (item("{name: b, health: 70000}"), 5, "70000 is neither a port nor a URL", "8090"),
        (item("{name: b, health: 'ftp://x'}"), 5, "ftp://x is neither a port nor a URL", "8090"),
        (item("{name: b, health_timeout: 0}"), 5, "items[1].health_timeout: 0 is too short", "30s"),
        (item("{name: b, enabled: maybe}"), 5, "maybe is neither yes nor no", "true or false"),
        (item("nothing"), 5, "services.items[1]: nothing is not a mapping", "docs/configuration.md"),
        (
            "services: {compose: {files: a}, strategy: vram}",
            1,
            "services.strategy: vram is not known",
            "Did you mean vram_based?",
        ),
        ("services: {compose: {files: a}, parallel: 0}", 1, "services.parallel: 0 is not a whole", "digits"),
        ("services: {compose: {files: a}, on_failure: x}", 1, "services.on_failure: x is not", "rollback"),
        ("services: {compose: {files: a}, device_ids: x}", 1, "services.device_ids: x is not", "uuid"),
        ("database: mysql://me:hunter2@x/y", 1, "database: mysql is not a supported", "postgresql+psycopg"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_a_hint(
    read: Reader, folder: Path, text: str, line: int, what: str, hint: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        read(text)
    first = caught.value.problems[0]
    assert first.startswith(f"{folder / 'cotenant.yaml'}, line {line}: "), first
    assert what in first
    assert hint in caught.value.hint
    assert "hunter2" not in f"{caught.value.problems}{caught.value.hint}"


def test_the_database_is_a_path_or_a_url(read: Reader, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    url = "postgresql+psycopg://cotenant@localhost/cotenant"
    assert read("server: {port: 1}").database is None
    assert read("database: state/c.db").database == str(folder / "state" / "c.db")
    assert read(f"database: {url}").database == url
    assert read("database: a.db", {"COTENANT_DATABASE": url}).database == url
    assert read("", {"COTENANT_DATABASE": "here.db"}).database == "/here.db"


def test_a_changed_section_is_told_on_a_reload(read: Reader) -> None:
    before, after = read(SHORT), read(SHORT.replace("name: a", "name: b"))
    assert diff(before, after).sentences() == ("services changed: it takes effect at the next start",)
    assert not diff(after, read(SHORT.replace("name: a", "name: b")))
