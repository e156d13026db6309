"""Groups of models behind the daemon as users run it."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import fake_fleet
from tests.support.http.client import Reply, post

pytestmark = pytest.mark.slow

SLOW: Mapping[str, object] = {"FAKE_TOKEN_S": 0.05}


def ask(daemon: Serving, model: str) -> Reply:
    return asyncio.run(post(port_of(daemon), "/v1/completions", {"model": model, "prompt": "x"}))


def loaded(daemon: Serving) -> list[str]:
    return [model["name"] for model in get(daemon, "/api/models")["models"] if model["state"] != "cold"]


def groups(folder: Path, *found: Mapping[str, object]) -> Mapping[str, str]:
    """Have the configuration of `fake_fleet` end with groups."""
    return {"timeouts": "{}}\ngroups: " + json.dumps(found) + "\nwarm: {ram_mib: 0"}


def test_a_group_is_served_by_whichever_member_is_warm(model: Path, tmp_path: Path) -> None:
    group = groups(tmp_path, {"name": "g", "members": ["a", "b"]})
    with fake_fleet(tmp_path, model, "1GiB,1GiB", {"a": {}, "b": {}}, **group) as daemon:
        assert ask(daemon, "b").status == 200
        assert ask(daemon, "g").status == 200
        assert loaded(daemon) == ["b"]
        assert get(daemon, "/api/models")["groups"] == [{"name": "g", "members": ["b", "a"]}]
        assert "g" in [each["id"] for each in get(daemon, "/v1/models")["data"]]
        assert ask(daemon, "other").status == 404


def test_a_group_spills_over_to_a_member_that_is_loaded_for_it(model: Path, tmp_path: Path) -> None:
    group = groups(tmp_path, {"name": "g", "members": ["a", "b"], "spill_over": 2})
    with fake_fleet(tmp_path, model, "1GiB,1GiB", {"a": SLOW, "b": SLOW}, **group) as daemon:

        async def several() -> list[int]:
            asked = {"model": "g", "prompt": "x"}
            port = port_of(daemon)
            return [
                reply.status
                for reply in await asyncio.gather(*(post(port, "/v1/completions", asked) for _ in range(4)))
            ]

        assert asyncio.run(several()) == [200] * 4
        assert loaded(daemon) == ["a", "b"]


@pytest.mark.parametrize("broken", ["too large", "fails to load"])
def test_who_is_refused_by_the_first_member_is_served_by_the_next(
    model: Path, tmp_path: Path, broken: str
) -> None:
    fails = broken == "fails to load"
    group = groups(tmp_path, {"name": "g", "members": ["a", "b"], "use": "first"})
    fleet: dict[str, dict[str, object]] = {"a": {"FAKE_EXIT": 1} if fails else {}, "b": {}}
    more = {} if fails else {"a": {"ctx": 4_000_000}}
    with fake_fleet(tmp_path, model, "1GiB", fleet, more=more, **group) as daemon:
        assert ask(daemon, "a").status == 503
        assert ask(daemon, "g").status == 200
        assert loaded(daemon) == ["b"]
