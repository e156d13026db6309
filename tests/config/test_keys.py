"""Keys with rights of their own, in the configuration."""

from datetime import UTC, datetime

import pytest

from cotenant.config.configuration import ServerSettings
from cotenant.config.settings import read_configuration
from cotenant.daemon.core.settings import ApiKeys
from cotenant.domain.errors import BadSetting
from cotenant.domain.keys import ApiKey, KeyScope, key_digest

YAML = """
server:
  keys:
    - {name: app, key: "${APP_KEY}", models: [llama], expires: 2030-12-31, priority: -2}
    - {name: boss, key: "sha256:%s", scope: admin}
"""


def read(tmp_path, text: str, **environment: str) -> ServerSettings:
    path = tmp_path / "cotenant.yaml"
    path.write_text(text)
    return read_configuration(path, environment=environment).server


def test_keys_are_kept_as_hashes_with_their_rights(tmp_path):
    server = read(tmp_path, YAML % key_digest("of the boss").hex(), APP_KEY="of-the-app")
    day = datetime(2030, 12, 31, tzinfo=UTC).timestamp()
    assert server.keys == (
        ApiKey("app", key_digest("of-the-app"), KeyScope.INFER, ("llama",), day, priority=-2),
        ApiKey("boss", key_digest("of the boss"), KeyScope.ADMIN),
    )
    assert "of-the-app" not in repr(server)


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ("{name: a}", "it has no key"),
        ("{key: k}", "it has no name"),
        ("{name: a b, key: k}", "'a b' cannot be the name of a key"),
        ("{name: a, key: sha256:123}", "its hash has not 64 hex digits"),
        ("{name: a, key: $KEY}", "it is no key, but how one is named elsewhere"),
        ("{name: a, key: k, scope: root}", "root"),
        ("{name: a, key: k, expires: soon}", "soon is not an instant"),
        ("{name: a, key: k, priority: 11}", "11"),
        ("{name: a, key: k, models: [a b]}", "a b"),
        ("{name: a, key: k, rights: all}", "unknown setting"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, entry, what):
    with pytest.raises(BadSetting) as raised:
        read(tmp_path, f"server:\n  keys:\n    - {entry}\n")
    assert what in raised.value.message
    assert "cotenant.yaml, line 3: server.keys[0]" in raised.value.message


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ([ApiKey("a", b"1"), ApiKey("a", b"2")], "two API keys are named 'a'"),
        ([ApiKey("a", b"1"), ApiKey("b", b"1")], "the API keys 'a' and 'b' are the same"),
        ([ApiKey("a", key_digest("flat"))], "and 'a' are the same"),
        ([ApiKey("a", b"1", KeyScope.OPERATE, ("llama",))], "has both models and the scope operate"),
    ],
)
def test_keys_that_contradict_one_another_are_refused(keys, what):
    with pytest.raises(BadSetting, match=what):
        ApiKeys(ServerSettings(api_keys=("flat",), keys=tuple(keys)))


def test_a_key_with_rights_is_enough_for_a_public_address_and_its_change_is_told():
    keys = ApiKeys(ServerSettings(host="0.0.0.0", keys=(ApiKey("a", b"1"),)))
    changed = keys.read(ServerSettings(keys=(ApiKey("a", b"1", KeyScope.ADMIN), ApiKey("b", b"2"))))
    assert keys.replace(changed) == ("API keys changed: 0 revoked, 1 added, 1 with other rights",)
    assert keys.replace(changed) == ()
