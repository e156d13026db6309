import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cotenant.hardware.model_cache.load_progress import loaded_bytes

MIB = 1 << 20
READS = """
import mmap, sys
way, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
file = open(path, "rb", buffering=0)
if way == "calls":
    file.read(count)
else:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # The kernel maps what is in the page cache around each page that is touched.
    mapped.madvise(mmap.MADV_RANDOM)
    sum(mapped[:count:mmap.PAGESIZE])
print("done", flush=True)
sys.stdin.read()
"""


@contextmanager
def reader(way: str, path: Path, count: int) -> Iterator[int]:
    """A process that has read the first `count` bytes of a file."""
    command = [sys.executable, "-I", "-S", "-c", READS, way, str(path), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        yield process.pid
        process.kill()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x" * (64 * MIB))
    return path


@pytest.mark.parametrize("way", ["calls", "mapping"])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_what_a_process_has_read_is_seen_either_way(file: Path, way: str, share: float) -> None:
    with reader(way, file, int(share * 64 * MIB)) as pid:
        seen = loaded_bytes(pid, [file])
    assert seen.total_bytes == 64 * MIB
    assert seen.read_bytes is not None
    # A start of Python reads some files of its own.
    assert share * 64 * MIB <= seen.read_bytes <= min(64 * MIB, share * 64 * MIB + 8 * MIB)


def test_only_the_files_asked_for_count_as_mapped(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"x" * (32 * MIB))
    with reader("mapping", file, 64 * MIB) as pid:
        seen = loaded_bytes(pid, [other])
    assert seen.read_bytes is not None
    assert seen.read_bytes < 8 * MIB


def test_a_file_in_parts_is_the_sum_of_them(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"x" * MIB)
    with reader("mapping", file, 64 * MIB) as pid:
        seen = loaded_bytes(pid, [file, other])
    assert (seen.read_bytes, seen.total_bytes) == (64 * MIB, 65 * MIB)


def test_a_process_that_has_gone_leaves_it_unknown(file: Path, tmp_path: Path) -> None:
    assert loaded_bytes(1, [file], proc=tmp_path).read_bytes is None


@pytest.mark.parametrize("content", ["", "rchar: many\n", "nonsense", "rchar\n"])
def test_a_kernel_that_tells_nonsense_leaves_it_unknown(file: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "io").write_text(content)
    assert loaded_bytes(7, [file], proc=tmp_path).read_bytes is None


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        loaded_bytes(1, [tmp_path / "gone.gguf"])
