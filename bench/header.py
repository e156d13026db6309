"""How long the header of a large model takes, and how much memory, beside the `gguf` package's reader."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.models.gguf_models import LLAMA_70B
from tests.support.models.sparse import write_sparse

from bench.rows import Row, print_table

_MERGES = 280_147
_OURS = """
from pathlib import Path
from cotenant.model_files import load_model
read = lambda path: load_model(Path(path))
"""
_THEIRS = """
from gguf import GGUFReader
read = GGUFReader
"""
_MEASURE = """
import sys, time
start = time.perf_counter()
read(sys.argv[1])
seconds = time.perf_counter() - start
peak_kib = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak_kib) / 1024)
"""


def main() -> list[Row]:
    """Read a sparse Llama 70B of 42 GB, with the 128,256 tokens and 280,147 merges of the real one."""
    with TemporaryDirectory() as folder:
        merges = [f"a{number} b" for number in range(_MERGES)]
        path = write_sparse(Path(folder) / "70b.gguf", LLAMA_70B, more={"tokenizer.ggml.merges": merges})
        seconds, peak_mib = min(_run(_OURS, path) for _ in range(3))
        their_seconds, their_peak_mib = _run(_THEIRS, path)
    return [
        Row(
            "header of a 42 GB model",
            seconds,
            "s",
            "gguf.GGUFReader",
            seconds / their_seconds,
            "< 0.5 s",
            seconds < 0.5,
        ),
        Row(
            "peak memory of that process",
            peak_mib,
            "MiB",
            "gguf.GGUFReader",
            peak_mib / their_peak_mib,
            "< 100 MB",
            peak_mib * 1.048576 < 100,
        ),
    ]


def _run(reader: str, path: Path) -> tuple[float, float]:
    """Read in a fresh interpreter; return seconds and peak resident MiB."""
    done = subprocess.run(
        [sys.executable, "-c", reader + _MEASURE, str(path)], check=True, capture_output=True, text=True
    )
    seconds, peak_mib = map(float, done.stdout.split())
    return seconds, peak_mib


if __name__ == "__main__":
    print_table(main())
