"""What Cotenant itself costs: the memory of its daemon."""

import subprocess
import sys
import tempfile
from pathlib import Path

from bench.rows import Row, print_table
from cotenant.demo_model import write_demo_model
from cotenant.domain.units import MIB

_MEMORY_TARGET_MIB = 120


def main() -> list[Row]:
    return [_memory()]


def _memory() -> Row:
    """Read the daemon's resident memory while it serves; its engine is a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "demo.gguf"
        write_demo_model(model)
        command = [sys.executable, "-m", "cotenant.cli.main", "serve", str(model), "--port", "0"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as daemon:
            assert daemon.stdout is not None
            for line in daemon.stdout:
                if line.startswith("Serving"):
                    break
            resident = _resident_bytes(daemon.pid) / MIB
            daemon.terminate()
    return Row(
        name="daemon without engines, resident",
        value=resident,
        unit="MiB",
        target=f"< {_MEMORY_TARGET_MIB} MiB",
        met=resident < _MEMORY_TARGET_MIB,
    )


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not tell a process's memory")


if __name__ == "__main__":
    print_table(main())
