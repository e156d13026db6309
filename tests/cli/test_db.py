import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cotenant.cli.main import main
from cotenant.domain.devices import DeviceId
from cotenant.domain.units import MIB
from cotenant.services.model import Assignment, SeenDevice, Strategy
from cotenant.store.migrations import HEAD
from cotenant.store.store import Store
from cotenant.store.writer import Writer

A5500, A400 = "GPU-00000000-0000-0000-0000-00000000a550", "GPU-00000000-0000-0000-0000-0000000000a4"
OTHER_MACHINE = f"""
gpus:
  - {{name: NVIDIA L4, total_mib: 23034}}
  - {{name: NVIDIA RTX A400, total_mib: 4094, uuid: {A400}}}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory."""
    for name in ("COTENANT_DATABASE", "COTENANT_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COTENANT_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def filled(home: Path) -> Path:
    """The database of a machine with an A5500 and an A400."""

    async def fill(store: Store) -> None:
        await store.services.see_devices(
            [
                SeenDevice(0, DeviceId(A5500), "NVIDIA RTX A5500", 24564 * MIB, None, "8.6", 1.0),
                SeenDevice(1, DeviceId(A400), "NVIDIA RTX A400", 4094 * MIB, None, "8.6", 1.0),
            ]
        )
        given = [
            Assignment("ai-llm", 0, DeviceId(A5500)),
            Assignment("ai-enrichment", 1, DeviceId(A400), 3.5),
            Assignment("ai-clip"),
        ]
        await store.services.save(Strategy.VRAM_BASED, given, 1.0, lambda number: None)

    using(home / "cotenant.db", fill)
    return home / "cotenant.db"


def using(path: Path, scenario: Any) -> Any:
    async def run() -> Any:
        store = Store(Writer(path))
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(run())


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["db", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def fail(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 1) -> str:
    assert main(["db", *arguments]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    told, hint = printed.err.splitlines()
    assert told.startswith("cotenant: error: ")
    assert hint.startswith("  hint: ")
    return f"{told}\n{hint}"


def test_current_and_upgrade_tell_the_revision_and_current_makes_nothing(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "cotenant.db"
    assert call(capsys, "current")[0].startswith(f"{path} has no tables yet")
    assert not path.exists()
    assert call(capsys, "upgrade") == [f"{path} is new: its tables have revision {HEAD}"]
    assert call(capsys, "upgrade") == [f"{path} is up to date: revision {HEAD}"]
    assert call(capsys, "current") == [f"{path} has revision {HEAD}, which is up to date"]


def test_current_as_json_and_the_database_from_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.db"
    monkeypatch.setenv("COTENANT_DATABASE", f"sqlite:///{path}")
    call(capsys, "upgrade")
    assert json.loads("\n".join(call(capsys, "current", "--json"))) == {
        "database": str(path),
        "kind": "sqlite",
        "revision": HEAD,
        "head": HEAD,
        "up_to_date": True,
    }


def test_a_newer_database_is_told_and_refused(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(filled)) as other:
        other.execute("PRAGMA user_version = 99")
    assert "newer than this Cotenant's" in call(capsys, "current")[0]
    for command in (("upgrade",), ("backup", str(filled.parent / "b.json"))):
        assert "version 99" in fail(capsys, *command)


def test_a_backup_is_restored_on_a_machine_with_other_gpus(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, gpus, there = tmp_path / "backup.json", tmp_path / "gpus.yaml", tmp_path / "there.db"
    gpus.write_text(OTHER_MACHINE)
    said = call(capsys, "backup", str(file))
    assert "3 assignments" in said[0]
    lines = call(capsys, "restore", str(file), "--database", str(there), "--gpus", str(gpus))
    assert [line.split("  ")[0] for line in lines[:4]] == ["service", "ai-llm", "ai-enrichment", "ai-clip"]
    assert f"GPU 0 NVIDIA RTX A5500  not on this machine: left unpinned, was {A5500}" in lines[1]
    assert lines[2].split("  ")[-1].strip() == "GPU 1"
    assert lines[3].split() == ["ai-clip", "unpinned", "unpinned"]
    assert lines[4].startswith("Saved as GPU configuration 2;")
    current = using(there, lambda store: store.services.current())
    assert current.assignments == (
        Assignment("ai-llm", None, DeviceId(A5500)),
        Assignment("ai-enrichment", 1, DeviceId(A400), 3.5),
        Assignment("ai-clip"),
    )


def test_a_machine_without_gpus_keeps_every_assignment_by_its_card(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "backup.json.gz"
    call(capsys, "backup", str(file))
    gpus = tmp_path / "gpus.yaml"
    gpus.write_text("gpus:\n  - {name: NVIDIA L4, total_mib: 23034}\n")
    monkeypatch.setenv("COTENANT_GPUS", str(gpus))
    lines = call(capsys, "restore", str(file), "--database", str(tmp_path / "there.db"))
    assert sum("not on this machine" in line for line in lines) == 2


def test_a_slice_is_no_card_that_a_service_could_be_pinned_to(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = tmp_path / "backup.json"
    assert main(["db", "backup", str(backup)]) == 0
    here = tmp_path / "here.yaml"
    here.write_text("- {name: A100 MIG, total_mib: 4864, uuid: MIG-1}\n- {name: L4, total_mib: 23034}\n")
    other = tmp_path / "other.db"
    assert main(["db", "restore", str(backup), "--database", str(other), "--gpus", str(here)]) == 0

    async def devices(store: Store) -> list[str | None]:
        return [each.name for each in await store.services.devices()]

    assert using(other, devices) == ["L4"]


def test_a_configuration_is_replaced_only_by_force_and_then_kept_beside_the_database(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "backup.json"
    call(capsys, "backup", str(file))
    assert "--force" in fail(capsys, "restore", str(file), "--gpus", "24GiB")
    lines = call(capsys, "restore", str(file), "--gpus", "24GiB", "--force")
    (safe,) = filled.parent.glob("cotenant.replaced-*.json")
    assert lines[-1] == f"The replaced configuration is kept in {safe}"
    assert json.loads(safe.read_text())["configuration"]["number"] == 1


def test_what_cannot_be_done_is_one_line_and_a_hint(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no database" in fail(capsys, "backup", str(tmp_path / "b.json"))
    assert "cannot be read" in fail(capsys, "restore", str(tmp_path / "no.json"))
    assert "not a database that Cotenant can use" in fail(
        capsys, "current", "--database", "mysql://me:secret@host/db", status=2
    )
    nowhere = "postgresql+psycopg://me:secret@127.0.0.1:1/db"
    for command in ("current", "upgrade"):
        told = fail(capsys, command, "--database", nowhere)
        assert "cannot be used" in told
        assert "secret" not in told
