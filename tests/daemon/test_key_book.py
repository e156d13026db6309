"""Keys that are made and revoked while the daemon runs: which, and when they count."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon.test_api_keys import cookie_of, daemon, status
from tests.support.daemon.serving import Serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with daemon(
        tmp_path_factory.mktemp("keys"), "keys: [{name: root, key: root-key, scope: admin}]"
    ) as running:
        running.address()
        yield running


def ask(running: Serving, method: str, path: str, body: object = None, key: str = "root-key") -> Any:
    request = urllib.request.Request(
        running.address() + path,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)["error"]["message"]


def test_a_key_counts_from_the_answer_on_that_tells_it_until_it_is_revoked(running):
    rights = {"name": "app", "models": ["tiny"], "expires": "30d", "priority": -3, "tokens_per_minute": 100}
    made = ask(running, "POST", "/api/keys", rights)["key"]
    assert status(running.address(), made) == 200
    assert status(running.address(), made, "/api/keys") == 403
    listed = {each["name"]: each for each in ask(running, "GET", "/api/keys")["keys"]}
    assert (listed["app"]["origin"], listed["root"]["origin"]) == ("stored", "configuration")
    assert (listed["app"]["models"], listed["app"]["priority"]) == (["tiny"], -3)
    cookie = cookie_of(running.address(), made)
    assert [each["name"] for each in ask(running, "DELETE", "/api/keys/app")["keys"]] == ["root"]
    assert status(running.address(), made) == 401
    assert status(running.address(), "", Cookie=cookie) == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("POST", "/api/keys", {"name": "root"}, "two API keys are named 'root'"),
        ("POST", "/api/keys", {"name": "a b"}, "cannot be the name of a key"),
        ("POST", "/api/keys", {"name": "a", "expires": "soon"}, "expires: soon is not an instant"),
        ("POST", "/api/keys", {"name": "a", "priority": 11}, "priority: 11 is not a whole number from -10"),
        (
            "POST",
            "/api/keys",
            {"name": "a", "scope": "admin", "models": ["m"]},
            "both models and the scope",
        ),
        ("DELETE", "/api/keys/root", None, "is of the configuration"),
        ("DELETE", "/api/keys/nobody", None, "there is no API key 'nobody'"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(running, method, path, body, words):
    assert words in ask(running, method, path, body)


def test_nobody_shuts_out_all_who_administer(tmp_path):
    with daemon(tmp_path, "insecure: false") as running:
        assert "must have the scope admin" in ask(running, "POST", "/api/keys", {"name": "a"}, key="")
        boss = ask(running, "POST", "/api/keys", {"name": "boss", "scope": "admin"}, key="")["key"]
        assert status(running.address(), "") == 401
        ask(running, "POST", "/api/keys", {"name": "app"}, key=boss)
        assert "the last key of the scope admin" in ask(running, "DELETE", "/api/keys/boss", key=boss)
        assert status(running.address(), boss, "/api/keys") == 200
