"""Programs that tests drive, from Debian's packages where root runs them and the machine lacks one."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def installed(program: str) -> str | None:
    """Return a program's path, its package of the same name installed if need be; None without it."""
    if shutil.which(program) is None and _may_install():
        _run("apt-get", "update", "-q")
        _run("apt-get", "install", "-y", "-q", "--no-install-recommends", program)
    return shutil.which(program)


@functools.cache
def unpacked(package: str, program: str) -> str | None:
    """Return a program's path, unpacked from a package that is not installed: that would start a service."""
    found = shutil.which(program)
    if found is not None or not _may_install():
        return found
    folder = Path(tempfile.mkdtemp(prefix="cotenant-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _run("apt-get", "update", "-q")
    _run("apt-get", "download", "-q", package, cwd=folder)
    for archive in folder.glob("*.deb"):
        _run("dpkg-deb", "-x", str(archive), str(folder))
    return shutil.which(program, path=str(folder / "usr" / "bin"))


def _may_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def _run(*argv: str, cwd: Path | None = None) -> None:
    quietly = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(argv, env=quietly, cwd=cwd, capture_output=True, timeout=100, check=False)
