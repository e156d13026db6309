"""The console's static files, under URLs that change with their content."""

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

PREFIX: Final = "/ui/static/"
_SERVED: Final = frozenset({".css", ".js", ".svg"})
_TYPES: Final = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file; `packed` is its body compressed with gzip."""

    content_type: str
    body: bytes
    packed: bytes


@cache
def assets() -> dict[str, Asset]:
    """Read all files, by path below `static`."""
    found: dict[str, Asset] = {}
    _collect(resources.files("cotenant.console") / "static", "", found)
    return found


@cache
def version() -> str:
    """Return a digest of all files: modules import each other, so their URLs must change together."""
    digest = hashlib.sha256()
    for path, asset in sorted(assets().items()):
        digest.update(path.encode())
        digest.update(asset.body)
    return digest.hexdigest()[:12]


def asset_url(path: str) -> str:
    """Return the URL of a file. Raises KeyError if there is none."""
    assets()[path]
    return f"{PREFIX}{version()}/{path}"


def _collect(folder: Traversable, prefix: str, found: dict[str, Asset]) -> None:
    for entry in folder.iterdir():
        path = f"{prefix}{entry.name}"
        ending = f".{entry.name.rpartition('.')[2]}"
        if entry.is_dir():
            _collect(entry, f"{path}/", found)
        elif ending in _SERVED:
            body = entry.read_bytes()
            kind = _TYPES.get(ending) or mimetypes.guess_type(entry.name)[0] or "application/octet-stream"
            found[path] = Asset(kind, body, gzip.compress(body, 9, mtime=0))
