"""API keys that change while the daemon runs."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cotenant.config.configuration import ServerSettings
from cotenant.daemon.core.settings import ApiKeys
from cotenant.domain.errors import InsecureBind
from tests.support.daemon.serving import Serving
from tests.support.waiting import wait_until


def status(address: str, key: str, path: str = "/v1/models", method: str = "GET", **headers: str) -> int:
    sent = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(address + path, headers={**sent, **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def cookie_of(address: str, key: str) -> str:
    body, kind = json.dumps({"key": key}).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(address + "/api/session", body, kind)
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(response.headers["Set-Cookie"]).partition(";")[0]


def daemon(tmp_path: Path, server: str) -> Serving:
    (tmp_path / "models").mkdir()
    config = tmp_path / "cotenant.yaml"
    config.write_text(f"server: {{port: 0, {server}}}\ndevices: {{gpus: 24GiB}}\nmodels_dir: models\n")
    config.chmod(0o600)
    return Serving(["serve", "--config", str(config)], tmp_path / "state")


@pytest.mark.slow
def test_a_key_taken_out_of_its_file_is_void_and_so_is_what_it_signed_in(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old\nother\n")
    with daemon(tmp_path, "api_key_file: keys") as running:
        address = running.address()
        revoked, kept = cookie_of(address, "old"), cookie_of(address, "other")
        keys.write_text("other\nnew\n")
        request = urllib.request.Request(
            address + "/api/reload", b"", {"Authorization": "Bearer other"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            said = json.load(response)["changed"]
        if said != ["API keys changed: 1 revoked, 1 added"]:
            assert not said
            # The watcher of the file was first.
            running.wait_for("1 revoked, 1 added")
        assert [status(address, key) for key in ("old", "other", "new")] == [401, 200, 200]
        assert status(address, "", Cookie=revoked) == 401
        assert status(address, "", Cookie=kept) == 200


@pytest.mark.slow
def test_a_save_alone_changes_the_keys_of_the_file_and_of_the_configuration(tmp_path: Path) -> None:
    with daemon(tmp_path, "api_keys: [one, two]") as running:
        address, config = running.address(), tmp_path / "cotenant.yaml"
        config.write_text(config.read_text().replace("one, two", "two, three"))
        wait_until(lambda: status(address, "one") == 401)
        assert [status(address, key) for key in ("two", "three")] == [200, 200]
        (tmp_path / "keys").write_text("four\n")
        config.write_text(config.read_text().replace("api_keys: [two, three]", "api_key_file: keys"))
        wait_until(lambda: status(address, "four") == 200)
        (tmp_path / "keys").write_text("five\n")
        wait_until(lambda: status(address, "five") == 200)
        assert status(address, "four") == 401
        text = config.read_text()
        own = "keys: [{name: app, key: own, scope: %s}], api_key_file"
        config.write_text(text.replace("api_key_file", own % "infer"))
        wait_until(lambda: status(address, "own") == 200)
        assert status(address, "own", "/api/models") == 403
        config.write_text(text.replace("api_key_file", own % "operate"))
        wait_until(lambda: status(address, "own", "/api/models") == 200)
        running.wait_for("0 revoked, 0 added, 1 with other rights")
        # Without any key the file is no file of keys: those in force stay.
        (tmp_path / "keys").write_text("")
        running.wait_for("holds no key")
        assert status(address, "five") == 200


def test_the_last_key_of_a_public_address_cannot_be_taken_out() -> None:
    keys = ApiKeys(ServerSettings(host="0.0.0.0", api_keys=("a",)))
    with pytest.raises(InsecureBind):
        # It would listen on loopback from its next start on; now it is public.
        keys.read(ServerSettings(host="127.0.0.1"))
    assert keys.read(ServerSettings(insecure=True)) == ()
