"""The console's static files, under URLs that change with their content."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

PREFIX: Final = "/ui/static/"
_FOLDER: Final = Path(__file__).with_name("static")
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file; `packed` is its body compressed with gzip."""

    content_type: str
    body: bytes
    packed: bytes


@cache
def assets() -> dict[str, Asset]:
    """Read all files, by path below `static`."""
    found = {}
    for file in _FOLDER.rglob("*"):
        if kind := _TYPES.get(file.suffix):
            body = file.read_bytes()
            path = file.relative_to(_FOLDER).as_posix()
            found[path] = Asset(kind, body, gzip.compress(body, 9, mtime=0))
    return found


@cache
def version() -> str:
    """Return a digest of all files: modules import each other, so their URLs must change together."""
    content = b"".join(path.encode() + asset.body for path, asset in sorted(assets().items()))
    return hashlib.sha256(content).hexdigest()[:12]


def asset_url(path: str) -> str:
    """Return the URL of a file. Raises KeyError if there is none."""
    assets()[path]
    return f"{PREFIX}{version()}/{path}"
