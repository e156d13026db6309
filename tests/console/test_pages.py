"""What pages show, and that they may not do more than show."""

import gzip
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from cotenant.console.app import Console
from cotenant.domain.decisions import Decision, DecisionKind, DeviceStatus, LeaseStatus, ModelStatus
from cotenant.domain.devices import GpuProcess
from cotenant.domain.engines import Adapter, Companions
from cotenant.domain.fragmentation import Defragmentation, DeviceFragmentation, Fragmentation, ModelMove
from cotenant.domain.models import Parts, Recipe
from cotenant.domain.placements import Placement
from cotenant.domain.units import GIB
from tests.console.looking import CARD, COLD, LOADING, NOWHERE, READY, gateway, look, operator, served
from tests.gateway.harness import SlotRouter
from tests.support.daemon.plain_gateway import PlainLessor, plain_gateway
from tests.support.daemon.plain_service_operator import PlainServices

HOSTILE = "<img src=x onerror=alert(1)>'\"`{{7*7}}/../&amp;"
PATHS = ("/", "/models/llama", "/models/org%2Fbert", "/events", "/doctor", "/gpu-configuration", "/nothing")
VOID = {"meta", "link", "input", "img", "br", "hr"}
FINDINGS = {
    "counts": {"problem": 1, "warning": 0, "unknown": 0, "ok": 1},
    "findings": [
        {"area": "machine", "level": "ok", "seen": "all is well", "matters": "", "mend": ""},
        {"area": "machine", "level": "problem", "seen": HOSTILE, "matters": "It burns.", "mend": "rm -r /x"},
    ],
}


class Outline(HTMLParser):
    """Reads a page strictly: every tag closed in its turn, ids named once, nothing that CSP would stop."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append((tag, named))
        assert "style" not in named, named
        assert not [name for name in named if name.startswith("on")], named
        if tag == "script":
            assert named["src"].startswith("/ui/static/")
        if "id" in named:
            self.ids.append(named["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        assert not (self.open and self.open[-1] in ("script", "style") and data.strip()), data


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_is_well_formed_and_has_nothing_inline(path):
    page = await look(gateway(services=PlainServices()), path)
    outline = Outline(page.text)
    assert page.status == (404 if path == "/nothing" else 200)
    assert len(outline.ids) == len(set(outline.ids)), "an id is there twice"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", PATHS)
async def test_every_control_has_a_name(path):
    page = await look(gateway(services=PlainServices()), path)
    for button in re.findall(r"<button[^>]*>.*?</button>", page.text, re.DOTALL):
        said = re.sub(r"<[^>]+>", "", button).strip() or "aria-label=" in button or 'id="ask-yes"' in button
        assert said, button


async def test_the_overview_shows_cards_and_models_with_their_numbers():
    page = (await look(gateway())).text
    for said in (
        *("RTX 3090", "14.0", "41 %", "63 °C", "211 W", "MPS", "llama: 8.0 GiB", "8.0 GiB", "1.5"),
        *("1.0 GiB of 4.0 GiB", "host RAM", 'value="25"', "/models/org%2Fbert"),
    ):
        assert said in page, said


async def test_a_bar_names_models_claims_services_processes_and_what_is_free():
    processes = (GpuProcess(77, "/usr/bin/blender", GIB), GpuProcess(78, None, GIB // 2))
    card = DeviceStatus(
        *("GPU-a", 0, "RTX 3090", 24 * GIB, 10 * GIB),
        claimed_bytes=10 * GIB,
        foreign_bytes=6 * GIB,
        plannable_bytes=7 * GIB,
        processes=processes,
    )
    page = (await look(gateway(operator(READY, LOADING, devices=(card,))))).text
    tips = re.findall(r'data-tip="([^"]+: [^"]+)"', page)
    assert tips[:6] == [
        "llama: 8.0 GiB",
        "qwen: 2.0 GiB · loading",
        "blender: 1.0 GiB · process 77",
        "process: 512 MiB · process 78",
        "other processes: 4.5 GiB",
        "free: 8.0 GiB · 7.0 GiB of it for models",
    ]


async def test_a_lease_is_a_tenant_of_its_card_and_its_decisions_lead_nowhere():
    told = operator(READY)
    told.tell(Decision(1, 0.0, DecisionKind.LOAD, "lease~7", "leases 4.0 GiB of GPU 0"))
    held = LeaseStatus("lease~7", "leased", 4 * GIB, 1.0, None, (CARD.uuid,), {CARD.uuid: 4 * GIB})
    page = (await look(gateway(told, lessor=PlainLessor(held)))).text
    assert 'data-tip="lease~7: 4.0 GiB"' in page
    assert page.split("Leased</dt>")[1].startswith('<dd>4.0<span class="of"> GiB: lease~7')
    assert "leases 4.0 GiB of GPU 0" in page
    assert 'href="/models/lease~7"' not in page


async def test_free_memory_that_no_model_could_use_is_hatched():
    told = operator()
    assert "#hatch" not in (await look(gateway(told))).text
    told.fragmented = Fragmentation(by_device={CARD.uuid: DeviceFragmentation(1.0, 3 * GIB)})
    page = (await look(gateway(told))).text
    assert "free, of no use: 3.0 GiB · no model that is served fits there" in page
    assert 'fill="url(#hatch)"' in page
    assert Outline(page).ids.count("hatch") == 1


async def test_moves_that_would_let_a_model_fit_are_told_in_a_sentence():
    told = operator()
    assert "would fit" not in (await look(gateway(told))).text
    moves = (ModelMove("llama", ("GPU-a",), "GPU-b", GIB, live=True),)
    told.proposed = Defragmentation("org/bert", True, moves, 1, "org/bert would fit if llama moved to GPU 1")
    for path in ("/", "/models/org%2Fbert"):
        page = (await look(gateway(told), path)).text
        assert "org/bert would fit if llama moved to GPU 1 (<code>cotenant defrag org/bert</code>)" in page
        Outline(page)


async def test_what_is_ordered_goes_to_the_api_and_unloading_says_what_becomes_of_requests():
    page = (await look(gateway())).text
    assert 'hx-post="/api/models/llama/unload?wait=0"' in page
    assert 'hx-post="/api/models/org%2Fbert/load?wait=0"' in page
    assert 'hx-post="/api/models/llama/pin"' in page
    assert "Its 1 request in flight is answered first. 2 wait in its queue and will load it again." in page


async def test_a_hostile_name_stays_text_everywhere():
    told = operator(ModelStatus(HOSTILE, "cold", last_failure=HOSTILE))
    told.tell(Decision(1, 0.0, DecisionKind.FAILED, HOSTILE, HOSTILE))
    app = gateway(told, examine=lambda: FINDINGS)
    row = re.search(r'href="(/models/[^"]+)"', (await look(app)).text)
    assert row is not None
    for path in ("/", row[1], "/events", "/ui/fragments/doctor", "/%3Cscript%3E"):
        text = (await look(app, path)).text
        Outline(text)
        assert "<img src=x" not in text, path
        assert "<script>" not in text, path
        assert "49" not in re.sub(r"[0-9a-f]{12}", "", text) or "{{7*7}}" in text


async def test_a_model_is_shown_by_any_of_its_names_and_an_unknown_one_is_404():
    app = gateway()
    assert "28 layers" in (await look(app, "/models/llama")).text
    assert (await look(app, "/models/org%2Fbert")).status == 200
    assert (await look(app, "/models/org/bert")).status == 200
    missing = await look(app, "/models/nobody")
    assert missing.status == 404
    assert "is not served here" in missing.text


async def test_a_model_shows_what_is_loaded_with_it_and_its_experts_in_host_ram():
    companions = Companions(
        draft="/m/small.gguf",
        adapters=(Adapter("/m/sql.gguf", 0.5),),
        control_vectors=(Adapter("/m/calm.gguf", -2.0),),
    )
    placed = Placement("llama", Recipe(n_cpu_moe=14), 48, 49, (), Parts(weights=GIB))
    told = operator()
    for n_cpu_moe, said in (("auto", "of the fewest layers that fit"), (14, "of 14 layers")):
        model = replace(
            served("llama", "ready", placement=placed, companions=companions),
            recipe=Recipe(n_cpu_moe=n_cpu_moe),
        )
        app = plain_gateway(
            SlotRouter(NOWHERE, models=(model,)), told, console=lambda api: Console(api, 0.005)
        )
        page = (await look(app, "/models/llama")).text
        assert said in page
        assert "the experts of 14 in host RAM" in page
        for path, scale in (("/m/sql.gguf", "× 0.5"), ("/m/calm.gguf", "× -2.0"), ("/m/small.gguf", "Draft")):
            assert path in page
            assert scale in page
    assert "Loaded with it" not in (await look(gateway(), "/models/llama")).text


async def test_without_models_and_devices_pages_say_what_to_do():
    class Nothing:
        pass

    told = operator(COLD, devices=())
    told.models.clear()
    page = (await look(gateway(told))).text
    assert "No model is served yet" in page
    assert "models_dir" in page
    assert "No device is known" in page


async def test_the_search_is_in_the_address():
    page = (await look(gateway(), "/?q=lla%22ma&show=loaded")).text
    assert 'value="lla&#34;ma"' in page
    assert '<option value="loaded" selected>' in page


async def test_the_doctor_shows_the_worst_first_and_a_fault_in_place():
    found = (await look(gateway(examine=lambda: FINDINGS), "/ui/fragments/doctor")).text
    assert found.index("onerror") < found.index("all is well")
    assert 'data-copy="rm -r /x"' in found
    missing = await look(gateway(), "/ui/fragments/doctor")
    assert (missing.status, "cotenant doctor" in missing.text) == (404, True)


async def test_events_are_newest_first_and_link_to_their_models():
    told = operator()
    for number in range(3):
        told.tell(Decision(number, 0.0, DecisionKind.EVICT, "llama", f"step {number}"))
    page = (await look(gateway(told), "/events")).text
    assert page.index("step 2") < page.index("step 0")
    assert '<a href="/models/llama">llama</a>' in page


async def test_a_page_is_packed_small():
    page = await look(gateway(), Accept_Encoding="br, gzip")
    assert page.headers["content-encoding"] == "gzip"
    assert b"<!doctype html>" in gzip.decompress(page.body)
    assert len(page.body) < 8000


async def test_pages_are_only_looked_at():
    page = await look(gateway(), "/events", "POST")
    assert page.status == 405


async def test_the_daemon_keeps_its_own_addresses():
    app = gateway()
    for path in ("/v1/models", "/api/models", "/health", "/metrics", "/openapi.json", "/v2/x", "/api/x"):
        kind = (await look(app, path)).headers["content-type"]
        assert ("html" in kind) == (path == "/v2/x"), path


async def test_an_overcommitted_card_and_one_that_is_left_out_say_so():
    over = DeviceStatus(
        *("GPU-b", 1, "RTX A400", None, None),
        claimed_bytes=0,
        foreign_bytes=None,
        plannable_bytes=0,
        overcommitted=True,
        left_out="its free memory is unknown",
    )
    page = (await look(gateway(operator(COLD, devices=(CARD, over))))).text
    for said in (
        "overcommitted",
        "Not used: its free memory is unknown",
        "Its memory size is unknown",
    ):
        assert said in page
