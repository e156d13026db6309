"""The generated files on disk: written all or none, with detection of manual edits and a history.

Next to them, `gpu-history/` keeps each configuration's files in a folder with its number, and `written.json`
with the checksums of the files written last and of those before. Files that match either count as unedited,
since a power cut may happen between two renames.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cotenant.atomic_files import staged, sync_folder, write_durably
from cotenant.domain.errors import GeneratedFileEdited, GeneratedFileFailed
from cotenant.services.compose.override import ASSIGNMENTS_NAME, OVERRIDE_NAME, RESET_NAME

NAMES: Final = (ASSIGNMENTS_NAME, RESET_NAME, OVERRIDE_NAME)
_CHECKSUMS: Final = "written.json"
_KEPT: Final = 20


@dataclass(frozen=True, slots=True)
class _Written:
    """Files that were written together, by checksum; None for a file that did not exist."""

    number: int | None
    sums: Mapping[str, str | None]


class GeneratedFiles:
    """The generated files in one folder, which is created when they are first written.

    `override` is the path of the override, which may not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.override = folder / OVERRIDE_NAME
        self._history = folder / "gpu-history"

    def in_use(self) -> tuple[Path, ...]:
        """Return those that a compose command takes after the operator's files, in order."""
        return tuple(path for path in (self.folder / RESET_NAME, self.override) if path.is_file())

    def number(self) -> int | None:
        """Return the configuration whose files are in place; None if there are none."""
        return next((each.number for each in self._written() if self._in_place(each)), None)

    def edited(self) -> tuple[Path, ...]:
        """Return those that differ from what was written: changed, removed, or not written by Cotenant."""
        written = self._written() or (_Written(None, {}),)
        return tuple(
            self.folder / name
            for name in NAMES
            if self._sum(name) not in [each.sums.get(name) for each in written]
        )

    def write(self, number: int, contents: Mapping[str, str | None], *, force: bool = False) -> None:
        """Put the files of a configuration in place, and keep them under its number.

        `contents` holds every name of `NAMES`, None for a file that must not exist. One that was removed by
        hand is written again. Raises GeneratedFileEdited for one that was changed, unless `force`, and
        GeneratedFileFailed, which leaves all as they were.
        """
        changed = [path for path in self.edited() if path.exists()]
        if changed and not force:
            raise _edited(changed)
        encoded = {name: None if text is None else text.encode() for name, text in contents.items()}
        self._keep(number, encoded)
        self._replace(number, encoded)

    def restore(self, number: int | None) -> None:
        """Restore a kept configuration's files; None removes them all. Raises GeneratedFileFailed."""
        contents: dict[str, bytes | None] = dict.fromkeys(NAMES)
        if number is not None:
            kept = self._history / str(number)
            if not (kept / ASSIGNMENTS_NAME).is_file():
                raise GeneratedFileFailed(
                    f"{kept}: the files of configuration {number} are no longer kept",
                    hint=f"The last {_KEPT} are kept. Save the assignments again.",
                )
            try:
                contents = {name: _content(kept / name) for name in NAMES}
            except OSError as error:
                raise GeneratedFileFailed(
                    f"{error.filename} cannot be read: {error.strerror}", hint="Save the assignments again."
                ) from error
        self._replace(number, contents)

    def ensure(self, number: int) -> None:
        """Put a configuration's files in place, for compose to read.

        If they are there, even edited, they stay; one that was removed is restored. Raises
        GeneratedFileEdited where files of another configuration were changed, and GeneratedFileFailed.
        """
        written = self._written()
        edited = self.edited()
        changed = [path for path in edited if path.exists()]
        others = not written or written[0].number != number
        if others and changed:
            raise _edited(changed)
        if others or (edited and not changed):
            self.restore(number)

    def undo_interrupted_write(self) -> None:
        """Undo a write that was interrupted between two renames: its configuration was not saved."""
        written = self._written()
        if len(written) < 2 or self.edited() or any(self._in_place(each) for each in written):
            return
        before = written[1]
        if before.number is None and any(before.sums.values()):
            return
        with contextlib.suppress(GeneratedFileFailed):
            self.restore(before.number)

    def _replace(self, number: int | None, contents: Mapping[str, bytes | None]) -> None:
        files = {name: self.folder / name for name in NAMES}
        checksums = self._history / _CHECKSUMS
        before: dict[Path, bytes | None] = {}
        fresh: dict[str, Path] = {}
        path = self._history
        try:
            self._history.mkdir(parents=True, exist_ok=True)
            for path in (*files.values(), checksums):
                before[path] = _content(path)
            for name, path in files.items():
                content = contents[name]
                if content is not None:
                    fresh[name] = staged(path, content)
            path = checksums
            after = _entry(number, contents)
            former = _entry(self.number(), {name: before[file] for name, file in files.items()})
            write_durably(path, json.dumps([after, former], indent=1).encode())
            for name, path in files.items():
                if name in fresh:
                    fresh[name].replace(path)
                else:
                    path.unlink(missing_ok=True)
            sync_folder(self.folder)
            with contextlib.suppress(OSError):
                write_durably(checksums, json.dumps([after], indent=1).encode())
        except OSError as error:
            for done, content in before.items():
                with contextlib.suppress(OSError):
                    if content is None:
                        done.unlink(missing_ok=True)
                    elif _content(done) != content:
                        write_durably(done, content)
            raise _failed(path, error) from error
        finally:
            for unused in fresh.values():
                with contextlib.suppress(OSError):
                    unused.unlink()

    def _keep(self, number: int, contents: Mapping[str, bytes | None]) -> None:
        kept = self._history / str(number)
        path = kept
        try:
            kept.mkdir(parents=True, exist_ok=True)
            for name in NAMES:
                path, content = kept / name, contents[name]
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    write_durably(path, content)
        except OSError as error:
            raise _failed(path, error) from error
        numbers = sorted(int(path.name) for path in self._history.iterdir() if path.name.isdecimal())
        in_use = {each.number for each in self._written()}
        for old in numbers[:-_KEPT]:
            if old not in in_use:
                shutil.rmtree(self._history / str(old), ignore_errors=True)

    def _written(self) -> tuple[_Written, ...]:
        try:
            entries: list[Any] = json.loads((self._history / _CHECKSUMS).read_bytes())
            return tuple(_Written(entry["number"], entry["sums"]) for entry in entries)
        except (OSError, ValueError, TypeError, KeyError):
            return ()

    def _in_place(self, written: _Written) -> bool:
        return all(self._sum(name) == written.sums.get(name) for name in NAMES)

    def _sum(self, name: str) -> str | None:
        try:
            return _sum(_content(self.folder / name))
        except OSError:
            return "unreadable"


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _entry(number: int | None, contents: Mapping[str, bytes | None]) -> dict[str, Any]:
    return {"number": number, "sums": {name: _sum(content) for name, content in contents.items()}}


def _sum(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _edited(paths: Sequence[Path]) -> GeneratedFileEdited:
    return GeneratedFileEdited(
        f"{' and '.join(map(str, paths))} {'was' if len(paths) == 1 else 'were'} changed by hand",
        hint="Move what you changed into your own compose file, or force the save to overwrite it.",
    )


def _failed(path: Path, error: OSError) -> GeneratedFileFailed:
    return GeneratedFileFailed(
        f"{path} cannot be written: {error.strerror}",
        hint="Make room, or give the daemon the right to write there; nothing was changed.",
    )
