"""`cotenant keys`: what it prints and stores, and a daemon that follows."""

import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cotenant.cli.main import main
from cotenant.config.configuration import ServerSettings
from cotenant.daemon.core.settings import ApiKeys
from cotenant.domain.errors import BadSetting
from cotenant.domain.keys import ApiKey, KeyScope, key_digest
from cotenant.store.key_file import KeyFile
from tests.daemon.test_api_keys import status
from tests.support.daemon.serving import Serving
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COTENANT_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "keys.json"


def test_a_key_is_printed_once_and_stored_as_a_hash_with_its_rights(file, capsys):
    assert (
        main(["keys", "add", "app", "--models", "llama,bert", "--expires", "2030-12-31", "--priority=-2"])
        == 0
    )
    text = capsys.readouterr().out.strip()
    assert len(text) > 40
    assert KeyFile(file).read() == (
        ApiKey("app", key_digest(text), KeyScope.INFER, ("llama", "bert"), 1924905600.0, priority=-2),
    )
    assert text not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main(["keys", "list"]) == 0
    cells = re.split(" {2,}", capsys.readouterr().out.splitlines()[1])
    assert cells[:7] == ["app", "infer", "llama, bert", "2030-12-31 00:00Z", "-", "-", "-2"]
    assert cells[7:] == ["0", "0", "0", "0", "0 ms"]
    assert main(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["scope"] == "infer"


def test_that_nobody_may_operate_with_the_stored_keys_is_said(capsys):
    assert main(["keys", "add", "app"]) == 0
    assert "keys add NAME --scope operate" in capsys.readouterr().err
    assert main(["keys", "add", "me", "--scope", "operate"]) == 0
    assert main(["keys", "add", "other"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("add app", "two API keys are named 'app'"),
        ("add a/b", "'a/b' cannot be the name of a key"),
        ("add b --scope root", "--scope: root is not known"),
        ("add b --scope operate --models a", "has both models and the scope operate"),
        ("add b --expires soon", "--expires: soon is not an instant"),
        ("add b --priority 99", "--priority: "),
        ("revoke b", "there is no key 'b'"),
        ("revoke app", "'app' is the last key"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_changes_nothing(file, capsys, arguments, what):
    main(["keys", "add", "app"])
    before = file.read_bytes()
    assert main(["keys", *arguments.split()]) == 2
    assert what in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_key_that_is_revoked_is_gone_and_others_stay(file):
    for name in ("one", "two"):
        main(["keys", "add", name])
    assert main(["keys", "revoke", "one"]) == 0
    assert [key.name for key in KeyFile(file).read()] == ["two"]


def test_keys_that_are_added_at_once_are_all_kept(file):
    def add(number: int) -> None:
        KeyFile(file).change(lambda keys: [*keys, ApiKey(f"k{number}", b"%d" % number)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    assert {key.name for key in KeyFile(file).read()} == {f"k{number}" for number in range(24)}


@pytest.mark.parametrize("content", ["{", "{}x", "[1]", '[{"name": "a"}]', '{"a": 1}', '[{"scope": "x"}]'])
def test_a_file_that_cannot_be_read_lets_no_daemon_start_without_keys(file, content):
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(BadSetting, match="it is not what `cotenant keys` writes"):
        ApiKeys(ServerSettings(), file)


def test_what_is_configured_wins_over_a_stored_key_of_its_name_or_text(file):
    stored = [ApiKey("app", b"1"), ApiKey("other", key_digest("flat")), ApiKey("third", b"3")]
    KeyFile(file).change(lambda _: stored)
    server = ServerSettings(host="0.0.0.0", api_keys=("flat",), keys=(ApiKey("app", b"2", KeyScope.ADMIN),))
    assert [(key.name, key.scope) for key in ApiKeys(server, file).current][1:] == [
        ("app", KeyScope.ADMIN),
        ("third", KeyScope.INFER),
    ]


@pytest.mark.slow
def test_a_daemon_follows_what_is_added_and_revoked(tmp_path, monkeypatch, capsys):
    config = tmp_path / "cotenant.yaml"
    config.write_text("server: {port: 0}\ndevices: {gpus: 24GiB}\nmodels_dir: models\n")
    (tmp_path / "models").mkdir()
    config.chmod(0o600)

    def added(*arguments: str) -> str:
        assert main(["keys", "add", *arguments]) == 0
        return capsys.readouterr().out.strip()

    with Serving(["serve", "--config", str(config)], tmp_path / "state") as running:
        address = running.address()
        assert status(address, "", "/api/models") == 200
        boss, app = added("boss", "--scope", "admin"), added("app")
        wait_until(lambda: status(address, "") == 401)
        wait_until(lambda: status(address, app) == 200)
        assert [status(address, each, "/api/models") for each in (boss, app)] == [200, 403]
        assert main(["keys", "revoke", "app"]) == 0
        wait_until(lambda: status(address, app) == 401)
        assert status(address, boss, "/api/models") == 200
