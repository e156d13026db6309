"""The page Analyse: what fits, what would, and what is said beside a field that makes no sense."""

import html
import json
import re
from typing import Any
from urllib.parse import urlencode

import pytest

from cotenant.domain.decisions import ModelStatus
from cotenant.domain.devices import Device, DeviceId, DeviceKind, Inventory, Reading
from cotenant.domain.placements import Placement, PlanQuery
from cotenant.domain.units import GIB
from cotenant.domain.vendors import InventorySource
from cotenant.model_files import load_model
from tests.console.looking import Page, gateway, look, operator
from tests.support.daemon.planner import entry, over_machines, planner
from tests.support.models.gguf_models import build_tiny_llama

PIECE = "/ui/fragments/analyse"


async def plan(**fields: Any) -> Page:
    body = urlencode({"source": "model", "model": "llama-70b", "devices": "detected", **fields}).encode()
    served = operator(ModelStatus("llama-70b", "cold"))
    return await look(gateway(served, planner=planner(entry())), PIECE, "POST", body)


def told(page: Page) -> Any:
    """Return what the page tells its script of the plan."""
    found = re.search(r'data-plan="([^"]*)"', page.text)
    assert found is not None, page.text
    return json.loads(html.unescape(found[1]))


def beside(page: Page, field: str) -> str:
    """Return what is said beside a field."""
    return page.text.partition(f'id="fault-{field}"')[2].partition("</div>")[0]


async def test_the_page_offers_the_models_served_and_asks_for_a_first_plan():
    page = await look(gateway(planner=planner()), "/analyse?model=qwen")
    assert page.status == 200
    assert "<option selected>qwen</option>" in page.text
    assert f'hx-post="{PIECE}"' in page.text
    assert "load" in page.text.partition('hx-trigger="')[2].partition('"')[0]


async def test_without_models_a_file_is_asked_for():
    page = await look(gateway(None, planner=planner()), "/analyse")
    assert 'type="file"' in page.text


async def test_a_plan_shows_bars_layers_and_the_command():
    page = await plan(fresh="1")
    assert page.status == 200
    for said in ("fits", "weights", "KV cache", "layers 0–", "and the output layer", "To serve it like this"):
        assert said in page.text
    assert 'data-copy="cotenant serve /models/llama-70b.gguf"' in page.text
    assert told(page)["recipe"]["n_ctx"] == 4096


async def test_a_plan_that_is_left_to_the_engine_shows_no_layers(tmp_path):
    card = Device(DeviceId("GPU-a"), DeviceKind.GPU, "RTX 3090", 0, 24 * GIB)
    cards = Inventory(InventorySource.NVML, (card,), {card.id: Reading(card.id, 0.0, 0, 24 * GIB)})
    path = build_tiny_llama(tmp_path / "tiny.gguf")
    plans = planner(entry("tiny", path, shape=load_model(path)), cards=cards, by_engine=True)
    body = urlencode({"source": "model", "model": "tiny", "devices": "detected", "fresh": "1"}).encode()
    served = operator(ModelStatus("tiny", "cold"))
    page = await look(gateway(served, planner=plans), PIECE, "POST", body)
    assert page.status == 200
    assert "--use-fit-params" in page.text
    assert "Layers by device" not in page.text


async def test_settings_are_planned_as_they_are_moved():
    page = await plan(n_ctx="8192", parallel="2", cache_type_k="q8_0", cache_type_v="q8_0", layers="auto")
    recipe = told(page)["recipe"]
    assert (recipe["n_ctx"], recipe["parallel"], recipe["cache_type_k"]) == (8192, 2, "q8_0")
    assert recipe["n_gpu_layers"] == "auto"
    assert "--n-ctx 8192 --parallel 2" in page.text


async def test_experts_in_host_ram_are_planned_as_told():
    for words, said in (("auto", "auto"), ("14", 14)):
        page = await plan(n_cpu_moe=words)
        assert told(page)["recipe"]["n_cpu_moe"] == said
        assert f"--n-cpu-moe {words}" in page.text


async def test_a_model_chosen_anew_is_planned_with_its_own_settings():
    assert told(await plan(n_ctx="8192", fresh="1"))["recipe"]["n_ctx"] == 4096


async def test_what_does_not_fit_says_what_would_with_a_button_for_each():
    page = await plan(n_ctx="131072")
    assert "does not fit" in page.text
    assert "What would fit" in page.text
    changes = [json.loads(html.unescape(each)) for each in re.findall(r'data-changes="([^"]*)"', page.text)]
    assert {"n_ctx", "n_gpu_layers"} <= {key for change in changes for key in change}
    assert "are missing" in page.text


async def test_described_gpus_are_planned_on():
    page = await plan(devices="described", gpus="80GiB")
    assert "GPU 80 GiB" in page.text
    assert "--gpus 80GiB" in page.text


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"devices": "described", "gpus": ""}, "gpus", "Describe the GPUs"),
        ({"devices": "described", "gpus": "24GiB,,"}, "gpus", "entry 2"),
        ({"n_ctx": "many"}, "recipe", "Context: &#39;many&#39; is not a whole number from 1 to"),
        ({"n_ctx": "0"}, "recipe", "Context"),
        ({"parallel": "999"}, "recipe", "Slots"),
        ({"n_ctx": "2", "parallel": "4"}, "recipe", "leaves no token"),
        ({"layers": "number", "n_gpu_layers": "some"}, "recipe", "Layers on GPUs"),
        ({"n_cpu_moe": "few"}, "recipe", "Experts in RAM, of blocks: &#39;few&#39; is not a whole number"),
        ({"source": "path", "path": "/etc/passwd"}, "source", "in no folder"),
        ({"source": "file", "headers": "gone"}, "source", "no header"),
        ({"model": "nobody"}, "source", "is not served"),
    ],
)
async def test_what_makes_no_sense_is_said_beside_its_field(
    fields: dict[str, str], field: str, said: str
) -> None:
    page = await plan(**fields)
    assert page.status == 200
    assert said in beside(page, field)
    assert "data-plan" not in page.text


async def test_what_was_wrong_goes_away_when_it_is_right():
    page = await plan()
    assert [beside(page, field).partition(">")[2] for field in ("source", "gpus", "recipe")] == ["", "", ""]


async def test_a_header_that_is_gone_is_asked_for_again():
    assert "data-header-gone" in (await plan(source="file", headers="gone")).text


@pytest.mark.parametrize(("source", "said"), [("file", "Choose a GGUF file"), ("path", "Type the path")])
async def test_without_a_model_it_says_what_to_do(source: str, said: str) -> None:
    page = await plan(source=source, model="")
    assert said in page.text
    assert 'class="fault"' not in page.text


async def test_hostile_text_stays_text():
    page = await plan(devices="described", gpus="<script>x</script>:1000")
    assert "<script>" not in page.text


async def test_of_several_machines_that_one_is_planned_on_where_the_model_loads_soonest_and_it_says_so():
    plans, status = over_machines()
    answer = await plans.plan(PlanQuery(model="llama-70b"))
    assert isinstance(answer.result, Placement)
    assert answer.result.node == "b"
    left_out = {budget.left_out for budget in answer.budgets if budget.device.node == "c"}
    assert left_out == {status.load_costs["c"].why}
    body = urlencode({"source": "model", "model": "llama-70b", "devices": "detected", "fresh": "1"}).encode()
    page = await look(gateway(operator(status), planner=plans), PIECE, "POST", body)
    assert "Where its files are: b: warm, 4.0 s; a: absent, 2 m 40 s; c: absent." in page.text
    page = await look(gateway(operator(status), planner=plans), "/models/llama-70b")
    assert "<dd>b: warm, 4.0 s; a: absent, 2 m 40 s; c: absent</dd>" in page.text
