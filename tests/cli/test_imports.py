"""What short commands import: that is most of their time (`python -m bench.startup`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cotenant.demo_model import write_demo_model
from cotenant.domain.keys import ApiKey, KeyUse
from cotenant.domain.records import KeyUseRecord, LoadRecord, Warmth
from cotenant.store.key_file import NAME, KeyFile
from cotenant.store.store import Store
from cotenant.store.writer import Writer

_DAEMONS = {
    *("alembic", "httptools", "jinja2", "prometheus_client", "sqlalchemy", "starlette", "uvicorn", "uvloop"),
    *("cotenant.console", "cotenant.daemon.core.loop", "cotenant.daemon.daemon", "cotenant.gateway"),
    *("cotenant.scheduling.scheduler", "xllamacpp"),
}
_CONFIGURATION = """\
server: {host: 127.0.0.1, port: 1}
devices: {gpus: '24GiB', mps: off}
models: [{name: m, path: demo.gguf}]
"""
_RUN = """\
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps([*sys.modules])))
from cotenant.cli.main import main
sys.exit(main())
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a configuration, a model, and a database as a daemon leaves it."""
    write_demo_model(tmp_path / "demo.gguf")
    (tmp_path / "cotenant.yaml").write_text(_CONFIGURATION)
    store = Store(Writer(tmp_path / "state" / "cotenant.db"))
    store.journal.record(LoadRecord(1.0, "m", 2.5, 1000, Warmth.COLD))
    store.journal.record(KeyUseRecord("2026-11-29", "app", KeyUse(3)))
    store.journal._writer.close()
    KeyFile(tmp_path / "state" / NAME).add(ApiKey("app", b"1"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "further"),
    [
        ("ps", {"pydantic"}),
        ("gpus", {"pydantic"}),
        ("plan demo.gguf", {"pydantic"}),
        ("keys list", {"pydantic", "asyncio"}),
        ("engine list", set()),
        ("models", {"asyncio", "cotenant.hardware.gpus.nvml", "cotenant.sharing.mps"}),
        ("models --check", {"asyncio", "cotenant.hardware.gpus.nvml"}),
    ],
)
def test_a_short_command_imports_nothing_that_only_a_daemon_needs(
    place: Path, command: str, further: set[str]
) -> None:
    kept = {name: each for name, each in os.environ.items() if not name.startswith("COTENANT_")}
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *command.split()],
        cwd=place,
        env={**kept, "COTENANT_STATE_DIR": str(place / "state")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "internal error" not in done.stderr
    assert done.returncode == (1 if command == "ps" else 0), done.stderr
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    wrong = {*_DAEMONS, *further} - ({"httptools"} if command in ("ps", "gpus") else set())
    assert imported & wrong == set()
