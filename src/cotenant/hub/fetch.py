"""The child process that pulls a model, so that a pull can be cancelled at any byte and blocks nothing.

`python -P -m cotenant.hub.fetch JSON` prints a line of JSON for each step and a last one with `files` or
`error`. It exits as soon as its standard input is closed: its parent has exited or cancelled the pull.

Files are downloaded into a hidden folder and moved once their checksums are right, so that only complete
files are served. An interrupted download resumes where it stopped.
"""

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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from cotenant.domain.errors import CotenantError, NoRoomOnDisk, PullFailed
from cotenant.domain.hub import HubName
from cotenant.domain.units import KIB, format_bytes, format_count
from cotenant.hub.choice import HubFile, choose
from cotenant.hub.client import BROKEN, HubClient

STAGING: Final = ".pulls"
_REPORT_EVERY_S: Final = 0.25
_CHUNK_BYTES: Final = 256 * KIB
_MAX_TRIES: Final = 5
"""How often a download without further bytes is retried."""
_RETRY_DELAY_S: Final = 1.0
_RETRYABLE: Final = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)


def main(argv: Sequence[str]) -> None:
    """Fetch what the JSON names: `name`, `models_dir`, and `list_within_s`, the limit for the hub's list."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    request = json.loads(argv[1])
    try:
        name, models_dir = HubName.parse(request["name"]), Path(request["models_dir"])
        files = _pull(name, models_dir, request["list_within_s"])
    except CotenantError as error:
        report(error={"code": error.code, "message": error.message, "hint": error.hint})
    except Exception as error:
        report(error={"code": PullFailed.code, "message": f"the pull failed: {error!r:.200}", "hint": ""})
        raise
    else:
        report(files=[str(path) for path in files])


def report(**facts: Any) -> None:
    """Print a step."""
    print(json.dumps(facts), flush=True)  # noqa: T201  the parent reads it


def _exit_with_parent() -> None:
    # Not sys.stdin: an interpreter that exits crashes while a thread holds its lock.
    while os.read(0, 1):
        pass
    os._exit(1)


def _pull(name: HubName, models_dir: Path, list_within_s: float) -> list[Path]:
    report(what=f"asking the hub for {name}")
    client = HubClient()
    revision, listed = client.files(name.repository, list_within_s)
    folder, staging = models_dir / name.folder, models_dir / STAGING / name.folder
    try:
        chosen = [(file, folder / file.name) for file in choose(name, listed)]
        total = sum(file.size_bytes or 0 for file, _ in chosen)
        report(what=f"{format_count(len(chosen), 'file')}, {format_bytes(total)}")
        missing = [(file, path) for file, path in chosen if not _is_present(file, path)]
        with _locked(staging):
            _check_room(models_dir, staging, [file for file, _ in missing])
            download = _Download(client, name.repository, revision, staging)
            fetched = [(download.fetch(file), path) for file, path in missing]
            folder.mkdir(parents=True, exist_ok=True)
            for part, path in fetched:
                part.replace(path)
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoRoomOnDisk(f"the disk of {models_dir} is full", hint="Free some of it.") from error
        raise PullFailed(
            f"{error.filename or models_dir} cannot be written: {error.strerror or error}",
            hint="Check the folder's permissions.",
        ) from error
    return [path for _, path in chosen]


@dataclass(frozen=True, slots=True)
class _Download:
    """Fetches files of one revision of a repository into `staging`."""

    client: HubClient
    repository: str
    revision: str
    staging: Path

    def fetch(self, file: HubFile) -> Path:
        """Fetch a file, or the rest of it, and check it. Raises HubError, or OSError of the disk."""
        # Named by its checksum, so that no file is assembled from two of the same name.
        path = self.staging / f"{file.name}.{(file.sha256 or self.revision)[:16]}.part"
        tries = _MAX_TRIES
        while True:
            before = _size(path)
            if file.size_bytes is not None and before == file.size_bytes:
                break
            try:
                self._resume(file, path, before)
                break
            except _ConnectionBroken as broken:
                tries = _MAX_TRIES if _size(path) > before else tries - 1
                if not tries:
                    why = broken.__cause__ or broken
                    raise self.client.fault(why, f"{self.repository}/{file.path}") from broken
            time.sleep(_RETRY_DELAY_S)
        _verify(file, path)
        return path

    def _resume(self, file: HubFile, path: Path, start: int) -> None:
        try:
            response, begin = self.client.open(self.repository, self.revision, file.path, start)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                # The partial file is longer than the file, so it belongs to another one.
                path.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in _RETRYABLE:
                raise self.client.fault(error, f"{self.repository}/{file.path}") from error
            raise _ConnectionBroken from error
        except BROKEN as error:
            raise _ConnectionBroken from error
        expected = file.size_bytes
        if expected is None and response.length is not None:
            expected = begin + response.length
        if expected is None and file.sha256 is None:
            response.close()
            raise PullFailed(
                f"the length of {file.name} is unknown, so it may be incomplete",
                hint="Check HF_ENDPOINT: that server reports neither sizes nor checksums.",
            )
        with response, path.open("r+b" if begin else "wb") as out:
            out.seek(begin)
            done, reported_at = begin, float("-inf")
            while True:
                if time.monotonic() >= reported_at + _REPORT_EVERY_S or done == file.size_bytes:
                    reported_at = time.monotonic()
                    _report_file(f"pulling {file.name}", file, done)
                if not (chunk := _read_chunk(response)):
                    break
                out.write(chunk)
                out.flush()
                done += len(chunk)
                if expected is not None and done > expected:
                    break  # `_verify` refuses it
            missing = response.length
        if missing or (expected is not None and done < expected):
            raise _ConnectionBroken("the connection was closed early")


class _ConnectionBroken(Exception):
    """A connection that broke; the bytes received are kept."""


def _read_chunk(response: IO[bytes]) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except BROKEN as error:
        raise _ConnectionBroken from error


def _report_file(what: str, file: HubFile, completed_bytes: int) -> None:
    report(
        what=what,
        file=file.name,
        sha256=file.sha256,
        total_bytes=file.size_bytes,
        completed_bytes=completed_bytes,
    )


@contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Lock the folder against another pull of the same repository. Raises PullFailed if one is running."""
    staging.mkdir(parents=True, exist_ok=True)
    with staging.with_suffix(staging.suffix + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullFailed(
                f"{staging.name} is already being pulled", hint="Wait for that pull, or cancel it."
            ) from None
        yield


def _is_present(file: HubFile, path: Path) -> bool:
    """Whether this file was pulled before; the checksum excludes others of the same size."""
    if file.size_bytes is None or not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    _report_file(f"checking {file.name}", file, 0)
    return file.sha256 is None or _sha256(path) == file.sha256


def _verify(file: HubFile, path: Path) -> None:
    size = _size(path)
    if file.size_bytes is not None and size != file.size_bytes:
        path.unlink()
        raise PullFailed(f"{file.name} has {size} bytes, not {file.size_bytes}", hint="Pull it again.")
    if file.sha256 is not None:
        _report_file(f"verifying {file.name}", file, size)
        if _sha256(path) != file.sha256:
            path.unlink()
            raise PullFailed(f"{file.name} does not have the checksum of the hub", hint="Pull it again.")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_room(models_dir: Path, staging: Path, files: Sequence[HubFile]) -> None:
    """Raise NoRoomOnDisk for a pull that would fill the disk; partial files count as fetched."""
    fetched = sum(_size(path) for path in staging.glob("*.part"))
    needed = max(0, sum(file.size_bytes or 0 for file in files) - fetched)
    free = shutil.disk_usage(models_dir).free
    if needed > free:
        raise NoRoomOnDisk(
            f"the pull needs {format_bytes(needed)}, the disk of {models_dir} has {format_bytes(free)} free",
            hint="Free some of it, or ask for a smaller quantisation.",
        )


if __name__ == "__main__":
    main(sys.argv)
