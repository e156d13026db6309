"""What an operator asks of a running daemon."""

import json
import urllib.request
from typing import Any

from tests.support.daemon.serving import Serving


def port_of(daemon: Serving) -> int:
    return int(daemon.address().rpartition(":")[2])


def get(daemon: Serving, path: str, *, as_text: bool = False) -> Any:
    with urllib.request.urlopen(daemon.address() + path, timeout=60) as response:
        return response.read().decode() if as_text else json.load(response)


def story(daemon: Serving, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(daemon, f"/api/models/{name}/why")["decisions"]
    return found
