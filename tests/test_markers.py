"""Tests that need what few machines have are skipped on others, with the reason."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parent.parent
_REAL = "tests/hardware/gpus/test_real_gpus.py"


def run(*arguments: str) -> str:
    """Run tests of real GPUs where no program of a driver is found; return what pytest says."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-rs", _REAL, *arguments]
    environment = {**os.environ, "PATH": ""}
    return subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True).stdout


def test_without_a_gpu_tests_of_real_ones_are_skipped_unless_they_are_asked_for() -> None:
    said = run()
    assert "real GPUs cannot be tested here: nvidia-smi shows none" in said
    assert "failed" not in said, said
    assert "error" not in said, said
    assert "failed" in run("-m", "gpu")
