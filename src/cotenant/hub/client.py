"""A client of the hub: lists the files of a repository and opens them at any byte.

The hub's own client (huggingface_hub 2.4) neither resumes a download nor compares checksums, and needs
fifteen megabytes of other packages. `HF_ENDPOINT` names another hub with the same interface; the token is in
`HF_TOKEN`, or in the file of the hub's tools.
"""

import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cotenant import __version__
from cotenant.domain.errors import HubError, HubSilent, NotOnHub
from cotenant.domain.units import MIB
from cotenant.hub.choice import HubFile

_PUBLIC: Final = "https://huggingface.co"
_MAX_LIST_BYTES: Final = 16 * MIB
_READ_TIMEOUT_S: Final = 30.0
_REVISION: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MAX_NAME_BYTES: Final = 200
BROKEN: Final = (OSError, http.client.HTTPException)
"""The errors of a broken connection."""


class HubClient:
    """A client of one hub. All methods block."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.endpoint = (environment.get("HF_ENDPOINT") or _PUBLIC).rstrip("/")
        self._token = _token(environment)
        self._offline = environment.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
        self._opener = urllib.request.build_opener(Redirects)

    def files(self, repository: str, within_s: float) -> tuple[str, list[HubFile]]:
        """Return the current revision of the repository, and its files. Raises NotOnHub or HubSilent."""
        if self._offline:
            raise HubSilent("HF_HUB_OFFLINE is set, so the hub is not queried", hint="Unset it to pull.")
        path = f"/api/models/{urllib.parse.quote(repository)}?blobs=true"
        try:
            with self._open(path, {}, within_s) as answer:
                listed = json.loads(answer.read(_MAX_LIST_BYTES))
            revision = listed["sha"]
            if not _REVISION.fullmatch(revision):
                raise ValueError(revision)
            found = [_hub_file(each) for each in listed["siblings"]]
            return revision, [file for file in found if _is_usable(file.name)]
        except BROKEN as error:
            raise self.fault(error, repository) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise HubSilent(
                f"the server at {self.endpoint} is not a known hub", hint="Check HF_ENDPOINT."
            ) from error

    def open(
        self, repository: str, revision: str, path: str, start: int
    ) -> tuple[http.client.HTTPResponse, int]:
        """Return a response with the bytes of a file, and their start: `start`, or 0 if the hub ignores it.

        Raises urllib.error.HTTPError and what `BROKEN` lists.
        """
        address = "/" + urllib.parse.quote(f"{repository}/resolve/{revision}/{path}")
        answer = self._open(address, {"Range": f"bytes={start}-"} if start else {}, _READ_TIMEOUT_S)
        return answer, start if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0

    def address(self, repository: str, revision: str, path: str) -> tuple[str, Mapping[str, str]]:
        """Return the URL of a file, and the headers to send for it: for a machine that has no token."""
        url = f"{self.endpoint}/{urllib.parse.quote(f'{repository}/resolve/{revision}/{path}')}"
        return url, {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def fault(self, error: BaseException, what: str) -> HubError:
        """Return the error to raise for a failed request."""
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if error.code in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
                return NotOnHub(
                    f"the hub does not give {what} to everyone, or does not have it",
                    hint="Check the name; accept its terms on the hub and set HF_TOKEN.",
                )
            if error.code == http.HTTPStatus.NOT_FOUND:
                return NotOnHub(f"there is no {what} on the hub", hint="Check its spelling there.")
            problem = f"it answers {error.code} {error.reason}"
        else:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        return HubSilent(
            f"the hub at {self.endpoint} could not be queried for {what}: {problem}"[:300],
            hint="Check the network, and HF_ENDPOINT.",
        )

    def _open(self, path: str, headers: Mapping[str, str], within_s: float) -> Any:
        sent = {"User-Agent": f"cotenant/{__version__}", "Accept-Encoding": "identity", **headers}
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.endpoint + path, headers=sent)  # noqa: S310  the operator's own
        return self._opener.open(request, timeout=within_s)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the storage of a file, without sending the token there."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request to the place that is named; the token goes to no other host."""
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and (following.type, following.host) != (req.type, req.host):
            following.remove_header("Authorization")
        return following


def _hub_file(listed: Any) -> HubFile:
    """Read a file of a list. Raises ValueError, LookupError, TypeError or AttributeError if it is none.

    Checksums become parts of paths, sizes are added up: nothing of them is taken on trust.
    """
    path, size, sha256 = listed["rfilename"], listed.get("size"), (listed.get("lfs") or {}).get("sha256")
    if size is not None and not (isinstance(size, int) and 0 <= size < 1 << 60):
        raise ValueError(size)
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ValueError(sha256)
    return HubFile(path.encode().decode(), size, sha256)


def _is_usable(name: str) -> bool:
    """Whether a file may have this name in a folder of models; hidden ones are not served."""
    return name.isprintable() and not name.startswith((".", "-")) and len(name.encode()) <= _MAX_NAME_BYTES


def _token(environment: Mapping[str, str]) -> str | None:
    if given := environment.get("HF_TOKEN"):
        return given.strip()
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    try:
        return Path(environment.get("HF_TOKEN_PATH") or home / "token").read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
