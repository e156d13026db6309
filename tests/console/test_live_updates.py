"""The stream of a tab: what changed and nothing else."""

from dataclasses import replace

import pytest

from cotenant.clock import SystemClock
from cotenant.console.live_updates import Part, Rows, SentParts
from cotenant.domain.decisions import Decision, DecisionKind, ModelStatus
from tests.console.looking import READY, following, gateway, look, operator
from tests.gateway.access.test_access_control import KEY, sign_in  # noqa: F401


def piece(name: str, **facts: object) -> Part:
    return Part(name, "x", facts)


def news(parts=(), changes=(), **rows: list[str]) -> dict[str, object]:
    return {"parts": [*parts], "changes": [*changes], "rows": rows}


def changed(told: dict[str, object]) -> set[str]:
    return {each[0] for each in (*told["parts"], *told["changes"])}


async def test_a_piece_is_rendered_again_only_when_its_facts_change():
    rendered: list[str] = []

    def render(part: Part) -> str:
        rendered.append(part.id)
        return f"<p>{part.facts['n'] // 10}</p>"

    watched = SentParts(render)
    assert await watched.changes({"a": piece("a", n=1)}) == news([("a", "<p>0</p>")])
    assert await watched.changes({"a": piece("a", n=1)}) is None
    assert await watched.changes({"a": piece("a", n=2)}) is None, "equal HTML is no news"
    assert rendered == ["a", "a"]
    assert await watched.changes({"a": piece("a", n=10)}) == news(changes=[("a", 2, [(1, "1")])])


async def test_a_piece_that_is_built_otherwise_is_sent_whole():
    watched = SentParts(lambda part: part.facts["html"])
    await watched.changes({"a": piece("a", html="<p>1</p>")})
    assert await watched.changes({"a": piece("a", html="<p>1<b>2</b></p>")}) == news(
        [("a", "<p>1<b>2</b></p>")]
    )


async def test_rows_tell_their_order_when_it_changes():
    watched = SentParts(lambda part: part.id)
    a, b = piece("a"), piece("b")
    assert await watched.changes({"r": Rows("r", [a])}) == news([("a", "a")], r=["a"])
    assert await watched.changes({"r": Rows("r", [b, a])}) == news([("b", "b")], r=["b", "a"])
    assert await watched.changes({"r": Rows("r", [b])}) == news(r=["b"])
    assert await watched.changes({"r": Rows("r", [b, a])}) == news([("a", "a")], r=["b", "a"])


async def test_a_tab_hears_of_the_model_that_changed_and_of_no_other():
    told = operator()
    async with following(gateway(told), "/") as event:
        assert await event() == ("start", 200)
        name, everything = await event()
        assert name == "parts"
        assert {"m-llama", "m-qwen", "m-org%2Fbert", "card-GPU-a", "summary"} <= {
            i for i, _ in everything["parts"]
        }
        assert everything["rows"]["models"] == ["m-llama", "m-qwen", "m-org%2Fbert"]
        told.models["org/bert"] = ModelStatus("org/bert", "cold", queued=3)
        name, told = await event()
    assert name == "parts"
    assert changed(told) == {"m-org%2Fbert", "summary"}
    assert told["rows"] == {}


async def test_two_tabs_agree():
    told = operator()
    app = gateway(told)
    async with following(app, "/") as one, following(app, "/models/llama") as other:
        for event in (one, other):
            assert [(await event())[0] for _ in range(2)] == ["start", "parts"]
        told.models["llama"] = replace(READY, pinned=True)
        for event in (one, other):
            assert any("Pinned" in html for _, html in (await event())[1]["parts"])


async def test_a_decision_arrives_by_itself():
    told = operator()
    async with following(gateway(told), "/events") as event:
        assert [(await event())[0] for _ in range(2)] == ["start", "parts"]
        told.tell(Decision(8, SystemClock().now(), DecisionKind.READY, "llama", "ready after 2 s"))
        _, heard = await event()
    assert [identifier for identifier, _ in heard["parts"]] == ["e-8"]
    assert heard["rows"] == {"events": ["e-8"]}


async def test_a_model_that_is_gone_is_trouble_that_ends_when_it_is_back():
    told = operator()
    app = gateway(told)
    router = app._router
    whole = router.served
    async with following(app, "/models/llama") as event:
        assert [(await event())[0] for _ in range(2)] == ["start", "parts"]
        router.served = whole[1:]
        name, trouble = await event()
        assert (name, "is not served here" in trouble["text"]) == ("trouble", True)
        router.served = whole
        assert await event() == ("trouble", {"text": ""})


async def test_streams_end_with_the_daemon():
    app = gateway()
    async with following(app, "/") as event:
        assert [(await event())[0] for _ in range(2)] == ["start", "parts"]
        app.end_streams()
        assert (await event())[0] == "end"


@pytest.mark.parametrize("at", ["", "/nothing", "http://evil.example/", "//["])
async def test_there_is_no_stream_of_what_is_no_page(at):
    from urllib.parse import quote

    page = await look(gateway(), f"/ui/stream?at={quote(at)}")
    assert page.status == 404
