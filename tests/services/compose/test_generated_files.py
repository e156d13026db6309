import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cotenant.domain.errors import GeneratedFileEdited, GeneratedFileFailed
from cotenant.services.compose.generated_files import NAMES, GeneratedFiles

ASSIGNMENTS, RESET, OVERRIDE = NAMES


def contents(number: int, *, reset: bool = True) -> dict[str, str | None]:
    texts: dict[str, str | None] = {name: f"{name} {number}\n" for name in NAMES}
    if not reset:
        texts[RESET] = None
    return texts


def on_disk(folder: Path) -> dict[str, str | None]:
    return {name: (folder / name).read_text() if (folder / name).is_file() else None for name in NAMES}


def nothing_left(folder: Path) -> bool:
    """Whether no temporary file stayed behind."""
    return not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_all_files_are_written_and_kept_under_the_number(tmp_path):
    files = GeneratedFiles(tmp_path / "config")
    assert files.number() is None
    assert files.in_use() == ()

    files.write(1, contents(1))
    files.write(2, contents(2, reset=False))

    folder = tmp_path / "config"
    assert on_disk(folder) == contents(2, reset=False)
    assert files.number() == 2
    assert files.in_use() == (folder / OVERRIDE,)
    assert (folder / "gpu-history" / "1" / RESET).read_text() == f"{RESET} 1\n"
    assert not (folder / "gpu-history" / "2" / RESET).exists()
    assert files.edited() == ()
    assert nothing_left(folder)


def test_an_edit_by_hand_is_noticed_and_kept(tmp_path):
    files = GeneratedFiles(tmp_path)
    files.write(1, contents(1))
    (tmp_path / OVERRIDE).write_text("mine\n")

    assert GeneratedFiles(tmp_path).edited() == (tmp_path / OVERRIDE,)
    with pytest.raises(GeneratedFileEdited, match="changed by hand"):
        files.write(2, contents(2))
    assert on_disk(tmp_path) == {**contents(1), OVERRIDE: "mine\n"}

    files.write(2, contents(2), force=True)
    assert on_disk(tmp_path) == contents(2)
    assert files.edited() == ()


def test_a_file_that_was_there_before_is_not_overwritten_unasked(tmp_path):
    (tmp_path / OVERRIDE).write_text("written before Cotenant came\n")
    files = GeneratedFiles(tmp_path)

    assert files.edited() == (tmp_path / OVERRIDE,)
    with pytest.raises(GeneratedFileEdited):
        files.write(1, contents(1))


def test_a_file_that_was_removed_is_shown_and_written_again(tmp_path):
    files = GeneratedFiles(tmp_path)
    files.write(1, contents(1))
    (tmp_path / OVERRIDE).unlink()

    assert files.edited() == (tmp_path / OVERRIDE,)
    files.write(2, contents(2))
    assert on_disk(tmp_path) == contents(2)


def test_an_earlier_configuration_is_put_back(tmp_path):
    files = GeneratedFiles(tmp_path)
    files.write(1, contents(1, reset=False))
    files.write(2, contents(2))

    files.restore(1)
    assert on_disk(tmp_path) == contents(1, reset=False)
    assert (files.number(), files.edited()) == (1, ())

    files.restore(None)
    assert on_disk(tmp_path) == dict.fromkeys(NAMES)
    assert (files.number(), files.edited()) == (None, ())


@pytest.mark.slow
def test_the_last_twenty_are_kept(tmp_path):
    files = GeneratedFiles(tmp_path)
    for number in range(1, 26):
        files.write(number, contents(number))

    kept = {int(path.name) for path in (tmp_path / "gpu-history").iterdir() if path.is_dir()}
    assert kept == set(range(6, 26))
    with pytest.raises(GeneratedFileFailed, match="no longer kept"):
        files.restore(5)
    assert on_disk(tmp_path) == contents(25)


def test_ensure_puts_the_files_of_a_configuration_in_place(tmp_path):
    files = GeneratedFiles(tmp_path)
    files.write(1, contents(1))
    files.write(2, contents(2))

    files.ensure(1)
    assert files.number() == 1
    (tmp_path / OVERRIDE).unlink()
    files.ensure(1)
    assert on_disk(tmp_path) == contents(1)
    (tmp_path / OVERRIDE).write_text("mine\n")
    files.ensure(1)
    assert (tmp_path / OVERRIDE).read_text() == "mine\n"
    with pytest.raises(GeneratedFileEdited):
        files.ensure(2)


def test_a_folder_that_cannot_be_made_fails_the_write(tmp_path):
    (tmp_path / "config").write_text("a file\n")
    with pytest.raises(GeneratedFileFailed, match="cannot be written") as raised:
        GeneratedFiles(tmp_path / "config").write(1, contents(1))
    assert raised.value.hint


def test_if_the_second_rename_fails_the_first_is_taken_back(tmp_path, monkeypatch):
    files = GeneratedFiles(tmp_path)
    files.write(1, contents(1))
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if target.name == OVERRIDE and target.parent == tmp_path and "2" in path.read_text():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(GeneratedFileFailed, match="Read-only file system"):
        files.write(2, contents(2))

    assert on_disk(tmp_path) == contents(1)
    assert (files.number(), files.edited()) == (1, ())
    assert nothing_left(tmp_path)


def test_if_one_file_cannot_be_replaced_none_is(tmp_path):
    files = GeneratedFiles(tmp_path)
    files.write(1, contents(1))
    (tmp_path / OVERRIDE).unlink()
    (tmp_path / OVERRIDE).mkdir()
    (tmp_path / OVERRIDE / "in the way").touch()

    with pytest.raises(GeneratedFileFailed, match=OVERRIDE):
        files.write(2, contents(2), force=True)

    assert {**on_disk(tmp_path), OVERRIDE: None} == {**contents(1), OVERRIDE: None}
    assert nothing_left(tmp_path)
    (tmp_path / OVERRIDE / "in the way").unlink()
    (tmp_path / OVERRIDE).rmdir()
    (tmp_path / OVERRIDE).write_text(str(contents(1)[OVERRIDE]))
    assert files.number() == 1


def test_a_full_disk_leaves_the_old_files(tmp_path):
    files = GeneratedFiles(tmp_path)
    files.write(1, contents(1))
    large = dict.fromkeys(NAMES, "x" * 8192)

    with _no_file_over(4096), pytest.raises(GeneratedFileFailed, match=os.strerror(errno.EFBIG)):
        files.write(2, large)

    assert on_disk(tmp_path) == contents(1)
    assert (files.number(), files.edited()) == (1, ())
    assert nothing_left(tmp_path)


@contextlib.contextmanager
def _no_file_over(limit_bytes: int):
    """The nearest to a full disk that needs no mount."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.slow
@pytest.mark.parametrize("renames", range(4))
def test_killed_between_two_renames_the_next_run_goes_back_to_the_saved_ones(tmp_path, renames):
    GeneratedFiles(tmp_path).write(1, contents(1))
    program = f"""
        import os, signal
        from pathlib import Path
        from cotenant.services.compose.generated_files import GeneratedFiles, NAMES
        folder, left, replace = Path({str(tmp_path)!r}), {renames}, Path.replace
        def counted(path, target):
            global left
            if Path(target).parent == folder:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return replace(path, target)
        Path.replace = counted
        GeneratedFiles(folder).write(2, {{name: f"{{name}} 2\\n" for name in NAMES}})
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, timeout=60)
    assert ran.returncode == (-signal.SIGKILL if renames < 3 else 0)

    files = GeneratedFiles(tmp_path)
    assert files.edited() == ()
    files.undo_interrupted_write()
    # With the third rename the write is whole, though nobody was told.
    assert on_disk(tmp_path) == contents(1 if renames < 3 else 2)
    assert files.edited() == ()
