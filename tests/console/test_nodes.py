"""The overview of several machines: cards by machine, and one that is silent greyed, with its age."""

from dataclasses import replace

from cotenant.console.app import Console
from cotenant.domain.decisions import LoadProgress, NodeState
from cotenant.domain.nodes import FileFetch
from tests.console.looking import CARD, COLD, NOWHERE, READY, gateway, look, operator, served
from tests.console.test_pages import HOSTILE, Outline
from tests.gateway.harness import SlotRouter
from tests.support.daemon.plain_gateway import plain_gateway
from tests.support.daemon.plain_nodes import READY as NODE_A
from tests.support.daemon.plain_nodes import SILENT as NODE_B
from tests.support.daemon.plain_nodes import PlainNodes

ON_A, ON_B = replace(CARD, node="a"), replace(CARD, uuid="GPU-b", node="b")
SECOND_OF_A = replace(CARD, uuid="GPU-c", index=1, node="a")
ON_NODE_B = replace(READY, state="suspended", devices=("GPU-b",), node="b")


async def overview(*nodes) -> str:
    told = operator(ON_NODE_B, COLD, devices=(ON_B, SECOND_OF_A, ON_A))
    page = await look(gateway(told, nodes=PlainNodes(*nodes)), "/")
    assert page.status == 200
    Outline(page.text)
    return page.text


async def test_cards_stand_under_their_machine_and_a_silent_one_is_greyed_with_its_age() -> None:
    html = await overview(NODE_A, NODE_B, replace(NODE_B, name="c", state=NodeState.LOST, silent_s=700.0))
    order = ["node-a", "card-GPU-a", "card-GPU-c", "node-b", "card-GPU-b", "node-c"]
    places = [html.index(f'id="{each}"') for each in order]
    assert places == sorted(places)
    assert 'id="card-GPU-b" class="card silent"' in html
    assert 'id="card-GPU-a" class="card"' in html
    assert 'id="node-b" class="node silent"' in html
    assert "has not answered for 4 s" in html
    assert "has not answered for 11 min" in html, "one that is lost is not hidden"
    assert "its clock is 3 s ahead" in html
    assert "b GPU 0" in html
    assert 'aria-label="Free machine a"' in html
    assert 'aria-label="Free machine b"' not in html


async def test_a_drained_machine_can_be_used_again() -> None:
    html = await overview(replace(NODE_A, state=NodeState.DRAINED), NODE_B)
    assert 'hx-post="/api/nodes/a/undrain"' in html


async def test_names_of_machines_are_text_only() -> None:
    html = await overview(replace(NODE_A, name=HOSTILE, warnings=(HOSTILE,)))
    assert HOSTILE not in html


async def test_of_one_machine_nothing_is_said_of_machines() -> None:
    page = await look(gateway(operator()), "/")
    assert 'class="node' not in page.text
    assert "card silent" not in page.text


async def test_the_page_of_a_model_follows_its_log_on_another_machine_and_names_that() -> None:
    async def page(**log: str) -> str:
        router = SlotRouter(NOWHERE, models=(served("llama", "suspended", **log),))
        app = plain_gateway(router, operator(ON_NODE_B), console=Console)
        return (await look(app, "/models/llama")).text

    there = await page(log_node="b")
    assert "data-has-log" in there
    assert "<dt>Machine of its log</dt><dd>b</dd>" in there
    assert "data-has-log" in await page(log_path="/logs/llama.log")
    none = await page()
    assert "data-has-log" not in none
    assert "Machine of its log" not in none


async def test_what_a_machine_fetches_for_a_model_is_the_progress_of_its_load() -> None:
    fetch = FileFetch("b", "m.gguf", 1 << 30, 4 << 30)
    loading = replace(ON_NODE_B, state="loading", load=LoadProgress(12.0, 160.0, fetching=fetch))
    page = await look(gateway(operator(loading), nodes=PlainNodes(NODE_A, NODE_B)), "/")
    assert '<progress max="100" value="25"' in page.text
    assert "1.0 GiB of 4.0 GiB fetched by b" in page.text


async def test_the_doctor_checks_a_machine_and_says_so_where_it_cannot() -> None:
    app = gateway(operator(), nodes=PlainNodes(replace(NODE_A, name="a b&c"), NODE_B))
    assert 'href="/doctor?node=a%20b%26c"' in (await look(app, "/")).text
    page = (await look(app, "/doctor?node=a%20b%26c")).text
    assert "Doctor of a b&amp;c" in page
    assert page.count('hx-get="/ui/fragments/doctor?node=a%20b%26c"') == 2
    assert "the disk is full" in (await look(app, "/ui/fragments/doctor?node=a%20b%26c")).text
    silent = await look(app, "/ui/fragments/doctor?node=b")
    assert (silent.status, "the agent of b did not answer" in silent.text) == (503, True)
    assert 'hx-get="/ui/fragments/doctor"' in (await look(app, "/doctor")).text
    hostile = (await look(app, f"/doctor?node={HOSTILE.replace(' ', '%20')}")).text
    assert HOSTILE not in hostile
