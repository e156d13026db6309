"""The page Keys: what it shows of each key, and how one is made."""

from urllib.parse import urlencode

import pytest

from cotenant.domain.errors import BadRequest
from cotenant.domain.keys import ApiKey, KeyScope, KeyUse, key_digest
from tests.console.looking import gateway, look
from tests.support.daemon.plain_gateway import PlainKeys

BOSS = ApiKey("boss", key_digest("boss"), KeyScope.ADMIN)
APP = ApiKey(
    "app",
    key_digest("app"),
    models=("llama", "bert"),
    expires_at=1924905600.0,
    requests_at_once=4,
    tokens_per_minute=90_000,
    priority=-2,
)
OLD = ApiKey("old", key_digest("old"), expires_at=1.0)


def row(text: str, name: str) -> str:
    """Return what a key's row says, without its tags."""
    return " ".join(text.partition(f'<tr id="key-{name}"')[2].partition("</tr>")[0].split())


async def test_a_key_is_shown_with_its_rights_and_what_it_has_used_and_not_its_hash():
    book = PlainKeys(BOSS, APP, OLD)
    book.used["app"] = KeyUse(1200, 34_000, 5_600, 75.4)
    page = await look(gateway(keys=book), "/keys")
    assert page.status == 200
    said = row(page.text, "app")
    for words in ("llama, bert", "2030-12-31 00:00 UTC", "4 at once, 90,000 tokens/min, priority -2"):
        assert words in said
    assert said.count("1,200") == 2
    assert said.count("34,000 + 5,600") == 2
    assert 'hx-delete="/api/keys/app"' in said
    assert "all" in row(page.text, "boss")
    assert "expired 1970-01-01" in row(page.text, "old")
    assert APP.digest.hex() not in page.text


async def made(book: PlainKeys, **fields: str):
    return await look(gateway(keys=book), "/ui/fragments/keys", "POST", urlencode(fields).encode())


async def test_the_form_makes_a_key_and_shows_its_text():
    class Noting(PlainKeys):
        async def add(self, name, rights):
            self.rights = dict(rights)
            return await super().add(name, rights)

    book = Noting(BOSS)
    fields = {
        "scope": "infer",
        "models": "llama, bert",
        "expires": "30d",
        "priority": "-3",
        "requests_at_once": " ",
    }
    page = await made(book, name=" new ", **fields)
    assert 'data-copy="text of new"' in page.text
    assert book.rights == {"scope": "infer", "models": ["llama", "bert"], "expires": "30d", "priority": -3}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "x", "priority": "high"}, "Priority: &#39;high&#39; is not a whole number."),
        ({"name": ""}, "name:"),
        ({"name": "no"}, "may not be made"),
    ],
)
async def test_what_is_wrong_is_said_below_the_form(fields, words):
    class Refusing(PlainKeys):
        async def add(self, name, rights):
            raise BadRequest("it may not be made")

    page = await made(Refusing(BOSS), scope="infer", **fields)
    assert 'class="fault"' in page.text
    assert words in page.text
    assert "data-copy" not in page.text
