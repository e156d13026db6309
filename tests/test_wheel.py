"""The wheel: what pip, pipx and `uv tool install` take."""

import os
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    built = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip(f"The wheel cannot be built here, for want of hatchling: {built.stderr[-300:]}")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def read(wheel: zipfile.ZipFile, name: str) -> bytes:
    (path,) = (each for each in wheel.namelist() if each.endswith(f".dist-info/{name}"))
    return wheel.read(path)


def test_it_has_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    there = {
        path.relative_to(SOURCE).as_posix()
        for path in (SOURCE / "cotenant").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == there


def test_its_metadata_is_what_the_project_states(wheel: zipfile.ZipFile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated: Message = message_from_bytes(read(wheel, "METADATA"))

    assert (stated["Name"], stated["Version"]) == (project["name"], project["version"])
    assert (stated["Requires-Python"], stated["License-Expression"]) == (">=3.11", "MIT")
    required = stated.get_all("Requires-Dist", [])
    assert [each for each in required if "extra ==" not in each] == project["dependencies"]
    assert set(stated.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert stated.get_payload(decode=True) == (ROOT / "README.md").read_bytes()
    assert read(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"cotenant = cotenant.cli.main:main" in read(wheel, "entry_points.txt")
    assert b"Tag: py3-none-any" in read(wheel, "WHEEL")


def test_it_runs_from_the_wheel_alone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    main = (
        "import sys, cotenant; from cotenant.cli.main import main; print(cotenant.__file__); sys.exit(main())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    argv = [sys.executable, "-c", main, "--version"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    where, version = done.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert version == f"cotenant {message_from_bytes(read(wheel, 'METADATA'))['Version']}"
