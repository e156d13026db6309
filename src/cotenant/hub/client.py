"""The hub's HTTP interface: what a repository holds, and its files from any byte on.

Its own client (huggingface_hub 2.4) neither takes up an interrupted download nor compares checksums, and
brings fifteen megabytes of other packages. `HF_ENDPOINT` names another hub of the same interface; the token
is that of `HF_TOKEN`, or of the file where the hub's tools keep it.
"""

from __future__ import annotations

import http.client
import json
import os
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
_MOST_LISTED_BYTES: Final = 16 * MIB
_READ_WITHIN_S: Final = 30.0
_REFUSED: Final = (401, 403)
BROKEN: Final = (OSError, http.client.HTTPException)
"""What a connection may end with."""


class HubClient:
    """Asks one hub. All of its methods block."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.endpoint = (environment.get("HF_ENDPOINT") or _PUBLIC).rstrip("/")
        self._token = _token(environment)
        self._offline = environment.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
        self._opener = urllib.request.build_opener(_Redirects)

    def files(self, repository: str, within_s: float) -> tuple[str, list[HubFile]]:
        """Return the revision that the repository is at, and its files. Raises NotOnHub or HubSilent."""
        if self._offline:
            raise HubSilent("HF_HUB_OFFLINE is set, so the hub is not asked", hint="Unset it to pull.")
        path = f"/api/models/{urllib.parse.quote(repository)}?blobs=true"
        try:
            with self._open(path, {}, within_s) as answer:
                told = json.loads(answer.read(_MOST_LISTED_BYTES))
            return str(told["sha"]), [_file(each) for each in told["siblings"]]
        except urllib.error.HTTPError as error:
            raise self.fault(error, repository) from error
        except BROKEN as error:
            raise self.fault(error, repository) from error
        except (ValueError, LookupError, TypeError) as error:
            raise HubSilent(
                f"what answers at {self.endpoint} is no hub that is known", hint="Check HF_ENDPOINT."
            ) from error

    def open(
        self, repository: str, revision: str, path: str, start: int
    ) -> tuple[http.client.HTTPResponse, int]:
        """Return the bytes of a file and where they begin: at `start`, or at 0 if the hub will not.

        Raises urllib.error.HTTPError and what `BROKEN` lists.
        """
        address = "/" + urllib.parse.quote(f"{repository}/resolve/{revision}/{path}")
        answer = self._open(address, {"Range": f"bytes={start}-"} if start else {}, _READ_WITHIN_S)
        return answer, start if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0

    def fault(self, error: BaseException, what: str) -> HubError:
        """Say what an error means."""
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if error.code in _REFUSED:
                return NotOnHub(
                    f"the hub does not give {what} to everyone, if it is there at all",
                    hint="Check the name; accept its terms on the hub and set HF_TOKEN.",
                )
            if error.code == http.HTTPStatus.NOT_FOUND:
                return NotOnHub(f"there is no {what} on the hub", hint="Check how it is written there.")
            said = f"it answers {error.code} {error.reason}"
        else:
            said = str(getattr(error, "reason", error)) or type(error).__name__
        return HubSilent(
            f"the hub at {self.endpoint} could not be asked for {what}: {said}"[:300],
            hint="Check the network, and HF_ENDPOINT.",
        )

    def _open(self, path: str, headers: Mapping[str, str], within_s: float) -> Any:
        told = {"User-Agent": f"cotenant/{__version__}", "Accept-Encoding": "identity", **headers}
        if self._token:
            told["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.endpoint + path, headers=told)  # noqa: S310  the operator's own
        return self._opener.open(request, timeout=within_s)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to where a file is stored, without telling the token there."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and following.host != req.host:
            following.remove_header("Authorization")
        return following


def _file(told: Any) -> HubFile:
    lfs = told.get("lfs") or {}
    return HubFile(str(told["rfilename"]), told.get("size"), lfs.get("sha256"))


def _token(environment: Mapping[str, str]) -> str | None:
    given = environment.get("HF_TOKEN")
    if given:
        return given.strip()
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    try:
        return Path(environment.get("HF_TOKEN_PATH") or home / "token").read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
