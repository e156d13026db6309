"""A stand-in for NVIDIA's MPS control program as an executable, and what tests ask of it."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cotenant.hardware.mps.program import PROGRAM

_SOURCE = Path(__file__).with_name("fake_mps_control.py")


def stand_in(folder: Path) -> Path:
    """Write the program, under the name of the real one, which tells its processes from others."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / PROGRAM
    program.write_text(f"#!{sys.executable}\n{_SOURCE.read_text(encoding='utf-8')}", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def real_program() -> Path:
    found = shutil.which(PROGRAM)
    assert found is not None, f"no {PROGRAM} on the PATH"
    return Path(found)


def client(pipe: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a process that the stand-in takes for a client of its daemon."""
    env = {"CUDA_MPS_PIPE_DIRECTORY": str(pipe), **variables}
    return subprocess.Popen([shutil.which("sleep") or "sleep", "600"], env=env)


def mps_processes(state_dir: Path) -> dict[int, list[str]]:
    """Find the processes of the control program that belong to a state directory, by their environment."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            environ = (folder / "environ").read_bytes()
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        named = any(os.path.basename(word).startswith("nvidia-cuda-mps") for word in words[:2])
        if named and f"CUDA_MPS_PIPE_DIRECTORY={state_dir}/".encode() in environ:
            found[int(folder.name)] = words
    return found


def control_daemon(state_dir: Path) -> int | None:
    """Return the control daemon's process, if one runs."""
    running = [pid for pid, words in mps_processes(state_dir).items() if "-f" in words or "-d" in words]
    assert len(running) <= 1, f"{len(running)} control daemons run"
    return running[0] if running else None


def left_in_pipes(state_dir: Path) -> list[Path]:
    return [path for pipe in state_dir.glob("mps/*/pipe") for path in pipe.iterdir()]


def killed_at_end(processes: list[subprocess.Popen[bytes]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    yield processes
    for process in processes:
        process.kill()
        process.wait()
