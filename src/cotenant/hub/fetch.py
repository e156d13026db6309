"""The child process that pulls a model, so that a pull can be given up at any byte and holds nobody up.

`python -P -m cotenant.hub.fetch JSON` prints a line of JSON for each step, at the end one with `files` or
`error`, and ends at once when its standard input does: whoever started it has gone or given up.

Files come into a hidden folder and move to their own once their checksums are right, so that what is served
is always whole. An interrupted download goes on where it stopped.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http
import json
import os
import shutil
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from cotenant.domain.errors import CotenantError, NoRoomOnDisk, PullFailed
from cotenant.domain.hub import HubName
from cotenant.domain.units import KIB, MIB, format_bytes
from cotenant.hub.choice import HubFile, choose
from cotenant.hub.client import BROKEN, HubClient

STAGING: Final = ".pulls"
_TELL_EVERY_S: Final = 0.25
_CHUNK_BYTES: Final = 256 * KIB
_HASHED_BYTES: Final = 4 * MIB
_TRIES: Final = 5
"""How often a download that brings no more byte is taken up."""
_BETWEEN_TRIES_S: Final = 1.0
_ASK_AGAIN: Final = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)


def main(argv: Sequence[str]) -> None:
    """Fetch what the JSON asks for: `name`, `models_dir`, and `list_within_s` to wait for the hub's list."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asked = json.loads(argv[1])
    try:
        name, models_dir = HubName.parse(asked["name"]), Path(asked["models_dir"])
        files = _pull(name, models_dir, asked["list_within_s"])
    except CotenantError as error:
        tell(error={"code": error.code, "message": error.message, "hint": error.hint})
    else:
        tell(files=[str(path) for path in files])


def tell(**facts: Any) -> None:
    """Print a step."""
    print(json.dumps(facts), flush=True)  # noqa: T201  the parent reads it


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)


def _pull(name: HubName, models_dir: Path, list_within_s: float) -> list[Path]:
    tell(what=f"asking the hub for {name}")
    client = HubClient()
    revision, listed = client.files(name.repository, list_within_s)
    folder, staging = models_dir / name.folder, models_dir / STAGING / name.folder
    try:
        chosen = [(file, folder / file.name) for file in choose(name, listed)]
        total = sum(file.size_bytes or 0 for file, _ in chosen)
        tell(what=f"{'1 file' if len(chosen) == 1 else f'{len(chosen)} files'}, {format_bytes(total)}")
        missing = [(file, path) for file, path in chosen if not _is_there(file, path)]
        with _alone(staging):
            _check_room(models_dir, staging, [file for file, _ in missing])
            download = _Download(client, name.repository, revision, staging)
            come = [(download.fetch(file), path) for file, path in missing]
            folder.mkdir(parents=True, exist_ok=True)
            for arrived, path in come:
                arrived.replace(path)
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoRoomOnDisk(f"the disk of {models_dir} is full", hint="Free some of it.") from error
        raise PullFailed(
            f"{error.filename or models_dir} cannot be written: {error.strerror or error}",
            hint="Check the folder's permissions.",
        ) from error
    return [path for _, path in chosen]


class _Download:
    """Fetches files of one revision of a repository into `staging`."""

    def __init__(self, client: HubClient, repository: str, revision: str, staging: Path) -> None:
        self._client = client
        self._repository = repository
        self._revision = revision
        self._staging = staging

    def fetch(self, file: HubFile) -> Path:
        """Fetch a file, or the rest of it, and check it. Raises HubError, or OSError of the disk."""
        # By its checksum, so that no file is joined from two of one name.
        path = self._staging / f"{file.name}.{(file.sha256 or self._revision)[:16]}.part"
        tries = _TRIES
        while True:
            before = _size(path)
            if file.size_bytes is not None and before == file.size_bytes:
                break
            try:
                self._go_on(file, path, before)
                break
            except _Broken as broken:
                tries = _TRIES if _size(path) > before else tries - 1
                if not tries:
                    raise self._client.fault(broken.why, f"{self._repository}/{file.path}") from broken
            time.sleep(_BETWEEN_TRIES_S)
        _verify(file, path)
        return path

    def _go_on(self, file: HubFile, path: Path, start: int) -> None:
        try:
            answer, begin = self._client.open(self._repository, self._revision, file.path, start)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                # What has come is longer than the file: it is of another one.
                path.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in _ASK_AGAIN:
                raise self._client.fault(error, f"{self._repository}/{file.path}") from error
            raise _Broken(error) from error
        except BROKEN as error:
            raise _Broken(error) from error
        with answer, path.open("r+b" if begin else "wb") as out:
            out.seek(begin)
            progress = _Progress(file, begin)
            while piece := _next_piece(answer):
                out.write(piece)
                out.flush()
                progress.add(len(piece))
            missing = answer.length
        if missing or (file.size_bytes is not None and _size(path) < file.size_bytes):
            raise _Broken(ConnectionError("the connection was closed early"))
        if missing is None and not answer.chunked and file.size_bytes is None and file.sha256 is None:
            path.unlink()
            raise PullFailed(
                f"nobody tells how long {file.name} is, so that it may have been cut short",
                hint="Check HF_ENDPOINT: what answers there tells neither sizes nor checksums.",
            )


class _Broken(Exception):
    """A connection that broke; what has come is kept."""

    def __init__(self, why: BaseException) -> None:
        super().__init__(str(why))
        self.why = why


def _next_piece(answer: IO[bytes]) -> bytes:
    try:
        return answer.read(_CHUNK_BYTES)
    except BROKEN as error:
        raise _Broken(error) from error


class _Progress:
    """Tells how far a file has come, a few times a second."""

    def __init__(self, file: HubFile, done: int) -> None:
        self._file = file
        self._done = done
        self._told_at = float("-inf")
        self.add(0)

    def add(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now >= self._told_at + _TELL_EVERY_S or self._done == self._file.size_bytes:
            self._told_at = now
            _tell_of(f"pulling {self._file.name}", self._file, self._done)


def _tell_of(what: str, file: HubFile, completed_bytes: int) -> None:
    tell(
        what=what,
        file=file.name,
        sha256=file.sha256,
        total_bytes=file.size_bytes,
        completed_bytes=completed_bytes,
    )


@contextmanager
def _alone(staging: Path) -> Iterator[None]:
    """Hold the folder against another pull of the same repository. Raises PullFailed if one is going on."""
    staging.mkdir(parents=True, exist_ok=True)
    with staging.with_suffix(staging.suffix + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullFailed(
                f"{staging.name} is being pulled already", hint="Wait for that pull, or end it."
            ) from None
        yield


def _is_there(file: HubFile, path: Path) -> bool:
    """Whether the very file was pulled before; another of the same size is told by its checksum."""
    if file.size_bytes is None or not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    _tell_of(f"checking {file.name}", file, 0)
    return file.sha256 is None or _sha256(path) == file.sha256


def _verify(file: HubFile, path: Path) -> None:
    size = _size(path)
    if file.size_bytes is not None and size != file.size_bytes:
        path.unlink()
        raise PullFailed(f"{file.name} came with {size} bytes, not {file.size_bytes}", hint="Pull it again.")
    if file.sha256 is None:
        return
    _tell_of(f"verifying {file.name}", file, size)
    if _sha256(path) != file.sha256:
        path.unlink()
        raise PullFailed(f"{file.name} came with another checksum than the hub tells", hint="Pull it again.")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_HASHED_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_room(models_dir: Path, staging: Path, files: Sequence[HubFile]) -> None:
    """Refuse what would fill the disk; what an interrupted pull left counts as come."""
    come = sum(_size(path) for path in staging.glob("*.part"))
    needed = max(0, sum(file.size_bytes or 0 for file in files) - come)
    free = shutil.disk_usage(models_dir).free
    if needed > free:
        raise NoRoomOnDisk(
            f"{format_bytes(needed)} are to come, and the disk of {models_dir} has {format_bytes(free)} free",
            hint="Free some of it, or ask for a smaller quantisation.",
        )


if __name__ == "__main__":
    main(sys.argv)
