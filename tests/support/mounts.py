"""File systems that are mounted for a test, where the machine allows it: it is skipped elsewhere."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount something at a folder, until the block ends."""
    done = subprocess.run(["mount", *options, str(folder)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    """Change how a bind mount may be used: `ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{how},bind", str(folder)], check=True)
