"""With keys on: nothing is shown or done before a browser has signed in."""

from urllib.parse import quote, urlencode

import pytest

from cotenant.console.app import FRAGMENTS, PAGES, own_page
from cotenant.domain.keys import ApiKey, key_digest
from tests.console.looking import following, gateway, look
from tests.support.daemon.plain_service_operator import PlainServices

KEY = "the-key"
FORM = {"Content_Type": "application/x-www-form-urlencoded"}


def locked(**options):
    return gateway(api_keys=(KEY,), **options)


async def sign_in(app, key=KEY, where="/events", **headers):
    body = urlencode({"key": key, "next": where}).encode()
    return await look(app, "/login", "POST", body, **FORM, **headers)


async def cookie_of(app) -> str:
    return (await sign_in(app)).headers["set-cookie"].partition(";")[0]


@pytest.mark.parametrize("path", ["/", "/models/llama", "/events?q=a%20b", "/ui/fragments/doctor"])
async def test_whoever_has_not_signed_in_is_led_to_the_login_and_back(path):
    page = await look(locked(), path)
    assert page.status == 303
    assert page.headers["location"].startswith("/login?next=" + quote(path.partition("?")[0], safe=""))
    assert not page.body


async def test_the_login_is_shown_and_leads_where_it_was_meant_to():
    app = locked()
    form = await look(app, "/login?next=%2Fevents")
    assert (form.status, 'name="next" value="/events"' in form.text) == (200, True)
    done = await sign_in(app)
    assert (done.status, done.headers["location"]) == (303, "/events")
    page = await look(app, "/events", Cookie=done.headers["set-cookie"].partition(";")[0])
    assert page.status == 200
    assert 'name="cotenant-csrf"' in page.text
    assert "Sign out" in page.text


async def test_a_wrong_key_is_told_beside_the_field():
    page = await sign_in(locked(), "<wrong>")
    assert (page.status, "The API key is wrong" in page.text or "the API key is wrong" in page.text) == (
        401,
        True,
    )
    assert "<wrong>" not in page.text
    assert "set-cookie" not in page.headers


async def test_a_key_does_for_pages_too():
    page = await look(locked(), "/", Authorization=f"Bearer {KEY}")
    assert page.status == 200


async def test_signing_out_needs_the_token_of_the_session():
    app = locked()
    cookie = await cookie_of(app)
    page = (await look(app, "/", Cookie=cookie)).text
    csrf = page.partition('name="cotenant-csrf" content="')[2].partition('"')[0]
    refused = await look(app, "/logout", "POST", b"csrf=other", Cookie=cookie, **FORM)
    assert refused.status == 403
    done = await look(app, "/logout", "POST", urlencode({"csrf": csrf}).encode(), Cookie=cookie, **FORM)
    assert (done.status, done.headers["location"], "Max-Age=0" in done.headers["set-cookie"]) == (
        303,
        "/login",
        True,
    )
    assert (await look(app, "/", Cookie=cookie)).status == 303


async def test_another_site_cannot_sign_a_browser_in():
    page = await sign_in(locked(), Origin="http://evil.example")
    assert page.status == 403


async def test_pages_are_not_reached_through_a_name_that_anybody_may_point_here():
    for path in ("/", "/login", "/ui/static/x/cotenant.css"):
        assert (await look(locked(), path, Host="evil.example")).status == 403


async def test_the_stream_of_a_tab_that_may_not_look_says_so_and_ends():
    async with following(locked(), "/") as event:
        assert [(await event()) for _ in range(3)] == [("start", 200), ("login", {}), ("end", None)]


async def test_a_tab_that_signs_out_elsewhere_is_told():
    app = locked()
    cookie = await cookie_of(app)
    page = (await look(app, "/", Cookie=cookie)).text
    csrf = page.partition('name="cotenant-csrf" content="')[2].partition('"')[0]
    async with following(app, "/", Cookie=cookie) as event:
        assert [(await event())[0] for _ in range(2)] == ["start", "parts"]
        await look(app, "/logout", "POST", urlencode({"csrf": csrf}).encode(), Cookie=cookie, **FORM)
        assert (await event())[0] == "login"


async def test_without_keys_there_is_no_login():
    page = await look(gateway(), "/login?next=/events")
    assert (page.status, page.headers["location"]) == (303, "/events")


@pytest.mark.parametrize(
    ("asked", "led"),
    [
        ("/events?q=1", "/events?q=1"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("http://evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nset-cookie: b", "/"),
        ("", "/"),
        ("/login", "/"),
    ],
)
def test_the_login_leads_nowhere_else(asked, led):
    assert own_page(asked) == led


# The doctor's page is a frame, for which its findings are requested separately.
PATHS = [
    *(page.path for page in PAGES if page.path != "/doctor"),
    *(path for method, path in FRAGMENTS if method == "GET"),
]


@pytest.mark.parametrize("path", PATHS)
async def test_a_browser_has_the_rights_of_the_key_that_it_signed_in_with(path):
    found = {"counts": dict.fromkeys(("problem", "warning", "unknown", "ok"), 0), "findings": []}
    keys = (KEY, ApiKey("app", key_digest("app")))
    app = gateway(api_keys=keys, services=PlainServices(), examine=lambda: found)
    path = path.replace("{name}", "llama")
    # What an operator saw a moment ago may still be cached.
    assert (await look(app, path, Cookie=await cookie_of(app))).status == 200
    signed_in = await sign_in(app, "app")
    assert signed_in.status == 303
    page = await look(app, path, Cookie=signed_in.headers["set-cookie"].partition(";")[0])
    needed = "admin" if path == "/keys" else "operate"
    assert (page.status, f"has the scope infer, and this needs {needed}" in page.text) == (403, True)
    for seen in ("RTX 3090", "org/bert", "ai-llm"):
        assert seen not in page.text
