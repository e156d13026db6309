"""Programs that tests drive, from Debian's packages where root runs them and the machine lacks one."""

import atexit
import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_TURN = Path(tempfile.gettempdir()) / "cotenant-tests-apt.lock"


@functools.cache
def installed(program: str) -> str | None:
    """Return a program's path, its package of the same name installed if need be; None without it."""
    if shutil.which(program) is None and may_install():
        install([program], lambda: shutil.which(program) is None)
    return shutil.which(program)


def install(packages: Sequence[str], lacking: Callable[[], object], within_s: float = 100) -> str:
    """Install packages while something is lacking, after others who install; return apt-get's last words."""
    said = ""
    with _turn():
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            if lacking():
                said = _run("apt-get", "-q", *command, within_s=within_s)
    return said.strip()[-300:]


@functools.cache
def unpacked(package: str, program: str) -> str | None:
    """Return a program's path, unpacked from a package that is not installed: that would start a service."""
    found = shutil.which(program)
    if found is not None or not may_install():
        return found
    folder = Path(tempfile.mkdtemp(prefix="cotenant-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with _turn():
        _run("apt-get", "-q", "update")
        _run("apt-get", "-q", "download", package, cwd=folder)
    for archive in folder.glob("*.deb"):
        _run("dpkg-deb", "-x", str(archive), str(folder))
    return shutil.which(program, path=str(folder / "usr" / "bin"))


def may_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


@contextmanager
def _turn() -> Iterator[None]:
    """Wait until no other process of these tests installs: apt-get does not wait for another, it fails."""
    with _TURN.open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _run(*argv: str, cwd: Path | None = None, within_s: float = 100) -> str:
    quietly = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    ran = subprocess.run(
        argv, env=quietly, cwd=cwd, capture_output=True, text=True, timeout=within_s, check=False
    )
    return ran.stderr
