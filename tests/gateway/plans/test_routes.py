"""Plans over HTTP: what fits, what would, as which command; and headers of files that lie elsewhere."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.cli.plan import add_model_options, read_recipe
from cotenant.clock import ManualClock
from cotenant.domain.engines import Endpoint
from cotenant.domain.models import (
    MAX_CTX,
    CacheType,
    FlashAttention,
    ModelKind,
    Recipe,
    SplitMode,
    SplitPolicy,
)
from cotenant.domain.requests import ServedModel
from cotenant.gateway.plans.command import changes_of, recipe_flags
from tests.gateway.harness import SlotRouter, fetch, serving
from tests.support.daemon.planner import planner
from tests.support.models.gguf_models import REAL_SHAPES, llama_70b

NOWHERE = Endpoint("127.0.0.1", 1)
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    REAL_SHAPES["llama-8b"](made / "llama-8b.gguf")
    return made


async def ask(port: int, **payload: Any) -> Any:
    body = json.dumps(payload).encode()
    return await fetch(port, "POST", "/api/plan", body, Content_Type="application/json")


def beginning(path: Path, first: int) -> tuple[bytes, int]:
    with path.open("rb") as file:
        return file.read(first), path.stat().st_size


async def send(port: int, path: Path, first: int) -> Any:
    body, size = beginning(path, first)
    where = f"/api/plan/headers?name={path.name}&size={size}"
    return await fetch(port, "POST", where, body, Content_Type="application/octet-stream")


def desk(folder: Path | None = None, **options: Any) -> Any:
    served = ServedModel("llama-70b", ModelKind.TEXT, created_at=1)
    return serving(SlotRouter(NOWHERE, models=(served,)), planner=planner(models_dir=folder), **options)


async def test_a_served_model_is_planned_on_the_cards_there_are():
    async with desk() as port:
        reply = await ask(port, model="Llama-70B:latest")
    told = reply.json()
    assert (reply.status, told["fits"], told["n_gpu_layers"]) == (200, True, 81)
    assert sum(told["tensor_split"]) == 81
    assert [device["name"] for device in told["devices"]] == ["RTX 3090", "RTX 3090"]
    for device in told["devices"]:
        assert device["planned_bytes"] == sum(device["parts"].values()) <= device["budget_bytes"]
    assert told["recipe"]["n_ctx"] == 4096
    assert told["command"] == "cotenant serve /models/llama-70b.gguf"


async def test_what_does_not_fit_comes_with_changes_that_make_it_fit():
    async with desk() as port:
        refused = (await ask(port, model="llama-70b", recipe={"n_ctx": 131072})).json()
        assert not refused["fits"]
        assert refused["refusal"].startswith("it needs")
        remedies = [remedy for remedy in refused["remedies"] if remedy["changes"]]
        assert {"n_ctx", "n_gpu_layers"} <= {key for remedy in remedies for key in remedy["changes"]}
        for remedy in remedies:
            again = await ask(port, model="llama-70b", recipe={"n_ctx": 131072, **remedy["changes"]})
            assert again.json()["fits"], remedy["text"]


async def test_described_cards_take_the_place_of_those_there_are():
    async with desk() as port:
        told = (await ask(port, model="llama-70b", gpus="80GiB", reserve_mib=2048)).json()
    assert (told["fits"], len(told["devices"]), told["gpus"]) == (True, 1, "80GiB")
    assert told["devices"][0]["budget_bytes"] == 78 << 30
    assert told["command"] == "cotenant serve /models/llama-70b.gguf --reserve-mib 2048"
    assert told["plan_command"].endswith("--reserve-mib 2048 --gpus 80GiB")


async def test_a_description_never_names_a_file(tmp_path: Path):
    file = tmp_path / "gpus.yaml"
    file.write_text("gpus: [{name: secret, total_mib: 1000}]\n")
    async with desk() as port:
        reply = await ask(port, model="llama-70b", gpus=str(file))
    assert (reply.status, reply.error["code"]) == (400, "bad_device_spec")
    assert "secret" not in reply.error["message"]
    assert "YAML" not in reply.error["message"]


async def test_a_file_in_the_folder_of_models_is_planned(folder: Path):
    async with desk(folder) as port:
        by_path = (await ask(port, path=str(folder / "llama-8b.gguf"))).json()
        by_name = (await ask(port, path="llama-8b.gguf")).json()
    assert by_path == by_name
    assert (by_path["fits"], by_path["n_layers"], by_path["file"]["quantisation"]) == (True, 32, "Q4_K_M")


async def test_what_lies_elsewhere_is_not_told_from_what_is_not_there(folder: Path, tmp_path: Path):
    there = tmp_path / "there.gguf"
    there.write_bytes(b"GGUF")
    told = []
    async with desk(folder) as port:
        for path in (there, tmp_path / "not-there.gguf", Path(f"{folder}/../{tmp_path.name}/there.gguf")):
            reply = await ask(port, path=str(path))
            assert (reply.status, reply.error["code"]) == (400, "bad_request")
            told.append(reply.error["message"].partition(" is in no folder")[2])
    assert told[0] == told[1] == told[2] != ""


async def test_no_more_is_told_of_a_file_that_is_no_model_than_of_one_that_is_not_there(folder: Path):
    (folder / "notes.txt").write_text("SECRET")
    told = []
    async with desk(folder) as port:
        for name in ("notes.txt", "not-there.txt"):
            reply = await ask(port, path=str(folder / name))
            assert (reply.status, reply.error["code"]) == (400, "bad_request")
            told.append(reply.error["message"].partition(" names no GGUF file")[2])
    assert told[0] == told[1] != ""


async def test_a_file_that_cannot_be_read_is_the_askers_fault(folder: Path):
    (folder / "broken.gguf").write_bytes(b"GGUF\x03\0\0\0")
    async with desk(folder) as port:
        for name in ("broken.gguf", "missing.gguf"):
            reply = await ask(port, path=str(folder / name))
            assert reply.status == 422, name
            assert name in reply.error["message"]


@pytest.mark.parametrize(
    ("payload", "status", "said"),
    [
        ({}, 422, "no model is given"),
        ({"model": "a", "path": "b"}, 422, "model and path are given"),
        ({"model": "nobody"}, 404, "is not served"),
        ({"model": "llama-70b", "recipe": {"n_ctx": 0}}, 422, "recipe.n_ctx"),
        ({"model": "llama-70b", "recipe": {"n_ctx": 2, "parallel": 4}}, 400, "--n-ctx 2 leaves no token"),
        ({"model": "llama-70b", "recipe": {"tensor_split": [1, 1, 1]}}, 400, "3 entries for 2 devices"),
        ({"model": "llama-70b", "recipe": {"n_gpu_layers": "some"}}, 422, "recipe.n_gpu_layers"),
        ({"model": "llama-70b", "recipe": {"n_cpu_moe": "all"}}, 422, "recipe.n_cpu_moe"),
        ({"model": "llama-70b", "recipe": {"n_cpu_moe": -1}}, 422, "recipe.n_cpu_moe"),
        ({"model": "llama-70b", "gpus": "24"}, 400, "has no unit"),
        ({"headers": ["nothing"]}, 404, "there is no header"),
    ],
)
async def test_what_cannot_be_asked_is_said_in_one_sentence(payload: Any, status: int, said: str):
    async with desk() as port:
        reply = await ask(port, **payload)
    assert reply.status == status
    assert said in reply.error["message"]


async def test_a_header_is_sent_in_steps_and_planned_like_the_file(folder: Path):
    path = folder / "llama-8b.gguf"
    steps = []
    async with desk(folder) as port:
        size = MIB // 2
        while (reply := await send(port, path, size)).status == 416:
            steps.append(size)
            size = int(reply.headers["x-cotenant-needed-bytes"])
            assert size > steps[-1]
        assert 1 <= len(steps) <= 4
        told = reply.json()
        assert (told["kind"], told["architecture"], told["parts"]) == ("text", "llama", 1)
        by_header = (await ask(port, headers=[told["id"]])).json()
        by_path = (await ask(port, path=str(path))).json()
    assert by_header["devices"] == by_path["devices"]
    assert (by_header["file"]["path"], by_header["command"]) == (None, "cotenant serve llama-8b.gguf")


async def test_a_header_is_kept_for_half_an_hour_after_it_was_used(folder: Path):
    clock = ManualClock()
    async with desk(folder, clock=clock) as port:
        header = (await send(port, folder / "llama-8b.gguf", 8 * MIB)).json()["id"]
        for _ in range(3):
            clock.advance(1500)
            assert (await ask(port, headers=[header])).status == 200
        clock.advance(1801)
        gone = await ask(port, headers=[header])
    assert (gone.status, gone.error["code"]) == (404, "header_gone")


async def test_all_parts_of_a_split_model_are_wanted(tmp_path: Path):
    whole = llama_70b(tmp_path / "whole.gguf")
    first = llama_70b(tmp_path / "split.gguf", parts=3)
    parts = sorted(first.parent.glob("split-*.gguf"))
    async with desk(tmp_path) as port:
        ids = [(await send(port, part, 8 * MIB)).json()["id"] for part in parts]
        missing = await ask(port, headers=ids[:2])
        joined = (await ask(port, headers=ids[::-1])).json()
        alone = (await ask(port, path=str(whole))).json()
    assert missing.status == 422
    assert "part 3 is missing" in missing.error["message"]
    assert joined["devices"] == alone["devices"]


@pytest.mark.parametrize(
    ("query", "content_type", "status"),
    [
        ("", "application/octet-stream", 400),
        ("?name=a.gguf", "application/octet-stream", 400),
        ("?name=a.gguf&size=1", "application/octet-stream", 400),
        ("?name=a.gguf&size=x", "application/octet-stream", 400),
        ("?name=a.gguf&size=100", "application/json", 415),
        ("?name=a.gguf&size=100", "application/octet-stream", 422),
    ],
)
async def test_what_is_no_header_is_refused(query: str, content_type: str, status: int):
    async with desk() as port:
        where = f"/api/plan/headers{query}"
        reply = await fetch(port, "POST", where, b"{} is no model", Content_Type=content_type)
    assert reply.status == status
    assert reply.error["message"]


RECIPES = st.builds(
    Recipe,
    n_ctx=st.integers(256, MAX_CTX),
    parallel=st.integers(1, 256),
    n_batch=st.integers(512, 4096),
    n_ubatch=st.integers(1, 512),
    cache_type_k=st.sampled_from(CacheType),
    cache_type_v=st.sampled_from(CacheType),
    flash_attention=st.sampled_from([FlashAttention.ON, FlashAttention.AUTO]),
    kv_unified=st.booleans(),
    n_gpu_layers=st.integers(0, 99) | st.sampled_from(["all", "auto"]),
    split_mode=st.sampled_from(SplitMode),
    split_policy=st.sampled_from(SplitPolicy),
    tensor_split=st.sampled_from([(), (0.25, 0.75), (3.0, 5.0)]),
    mmap=st.booleans(),
    mlock=st.booleans(),
).filter(lambda recipe: not recipe.tensor_split or recipe.split_mode is SplitMode.LAYER)


@given(RECIPES)
def test_the_command_means_the_recipe_that_was_planned(recipe: Recipe):
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    assert read_recipe(parser.parse_args(shlex.split(shlex.join(recipe_flags(recipe))))) == recipe


def test_the_flags_of_a_remedy_are_told_as_fields():
    assert changes_of("--n-ctx 2048 --cache-type-k q8_0") == {"n_ctx": 2048, "cache_type_k": "q8_0"}
    assert changes_of("--reserve-mib 512") == {"reserve_mib": 512}
    assert changes_of("") == {}
