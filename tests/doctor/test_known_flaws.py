from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.config.configuration import Configuration, ModelEntry, OllamaSettings
from cotenant.doctor.findings import Level, Observation
from cotenant.doctor.host_context import HostContext
from cotenant.doctor.known_flaws import FLAWS, known_flaws
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineOptions
from cotenant.domain.launching import LaunchOptions
from cotenant.domain.models import Recipe
from tests.doctor.support import levels, machine, only
from tests.engines.vllm.test_engine import environment_with
from tests.support.daemon.planner import entry
from tests.support.engines.fake_programs import ollama_daemon
from tests.support.engines.orders import fake_server


@pytest.fixture(autouse=True)
def _without_the_embedded_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotenant.engines.llama_cpp.builds.embedded_build", lambda: None)


def of_llama_cpp(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> list[Observation]:
    monkeypatch.setenv("FAKE_VERSION", version)
    return list(known_flaws(machine(folder, llama_server=fake_server(folder))))


def of_vllm(folder: Path, **changes: object) -> list[Observation]:
    model: ModelEntry = entry(recipe=Recipe(engine=EngineKind.VLLM), **changes)
    return list(known_flaws(serving(machine(folder), models=(model,))))


def serving(host: HostContext, **settings: object) -> HostContext:
    return replace(host, configuration=Configuration(**settings))  # type: ignore[arg-type]


def test_an_old_llama_server_is_told_with_every_flaw_and_what_removes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = only(of_llama_cpp(tmp_path, monkeypatch, "8145 (0c1e570)"), Level.WARNING)
    assert found.seen.startswith("llama-server 8145 (0c1e570) has known flaws: CVE-2026-27940, CVE-")
    assert "CVE-2026-21869: a request can write beyond its memory." in found.matters
    assert found.fix == "Update it: 8940 or newer has none of them."


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("8146 (0c1e570)", [Level.WARNING]),
        ("8940 (0c1e570)", [Level.OK]),
        ("b8939-0c1e570", [Level.WARNING]),
        ("1.2.3 (build 8939, commit 0c1e570)", [Level.WARNING]),
        ("2026.10.11549", [Level.OK]),  # as xllamacpp numbers itself
        ("0 (unknown)", []),  # built from an archive
        ("9.9 (fake)", []),
    ],
)
def test_a_build_is_compared_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, expected: list[Level]
) -> None:
    assert levels(of_llama_cpp(tmp_path, monkeypatch, version)) == expected


@pytest.mark.parametrize(
    ("version", "ids"),
    [
        ("0.13.0", ["CVE-2026-22807", "CVE-2026-22778", "CVE-2026-44222", "CVE-2026-48746"]),
        ("0.14.0", ["CVE-2026-22778", "CVE-2026-44222", "CVE-2026-48746"]),
        ("0.32.0", []),
        ("0.14.0.dev3+g12345", []),
    ],
)
def test_the_release_of_vllm_that_is_installed_is_looked_up(
    tmp_path: Path, version: str, ids: list[str]
) -> None:
    program = environment_with(tmp_path / "venv", version)
    found = of_vllm(tmp_path, options=EngineOptions(command=(str(program),)))
    assert [flaw.id for flaw in FLAWS for each in found if f"{flaw.id}:" in each.matters] == ids
    assert all(each.level is (Level.WARNING if ids else Level.OK) for each in found)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("vllm/vllm-openai:v0.13.0-cu128", [Level.WARNING]),
        ("rocm/vllm:rocm6.4.1_vllm_0.10.2_2025", [Level.WARNING]),
        ("/images/vllm-0.32.0.sif", [Level.OK]),
        ("vllm/vllm-openai:latest", []),
        ("here:5000/vllm", []),
    ],
)
def test_an_image_is_looked_up_by_its_name(tmp_path: Path, image: str, expected: list[Level]) -> None:
    assert levels(of_vllm(tmp_path, launch=LaunchOptions(image=image))) == expected


def test_an_ollama_daemon_is_asked_once_for_its_version(tmp_path: Path) -> None:
    with ollama_daemon({"FAKE_VERSION": "0.17.0"}) as port:
        address = Endpoint("127.0.0.1", port)
        model = entry(recipe=Recipe(engine=EngineKind.OLLAMA), options=EngineOptions(address=address))
        host = serving(machine(tmp_path), ollama=OllamaSettings(address), models=(model, model))
        found = only(known_flaws(host), Level.WARNING)
    assert found.seen == f"Ollama at 127.0.0.1:{port} 0.17.0 has known flaws: CVE-2026-7482"
    assert levels(known_flaws(host)) == []  # it is gone


def test_the_documentation_lists_every_flaw_with_its_versions() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    for flaw in FLAWS:
        first, fixed = (".".join(map(str, version)) for version in (flaw.first, flaw.fixed))
        row = f"| {flaw.engine} | {first} | {fixed} | {flaw.id} | {flaw.what} |"
        assert row in page, row
