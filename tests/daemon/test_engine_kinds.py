"""Engines of several kinds on one card, live: the scheduler's promises hold whoever runs a model."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon.api import get, port_of, story
from tests.support.daemon.serving import Serving
from tests.support.engines.fake_programs import (
    ask,
    hugging_face_folder,
    ollama_daemon,
    openai_server,
    vllm_program,
)
from tests.support.engines.orders import fake_server
from tests.support.gpus.paper_machine import PaperMachine
from tests.support.http.client import post
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MIB = 1 << 20


@contextlib.contextmanager
def serve(folder: Path, config: dict[str, Any], machine: PaperMachine, *flags: str) -> Iterator[Serving]:
    path = folder / "cotenant.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    argv = ["serve", "--config", str(path), "--port", "0", "--gpus", str(machine.path)]
    argv += ["--reserve-mib", "100", "--min-budget-mib", "100", "--overhead-mib", "64"]
    argv += ["--llama-server", str(fake_server(folder)), *flags]
    with Serving(argv, folder / "state") as daemon:
        daemon.address()
        yield daemon
        assert daemon.process.poll() is not None or daemon.terminate() == 0
        assert "Traceback" not in daemon.output
        assert "law" not in daemon.output


def complete(daemon: Serving, name: str, **more: object) -> Any:
    body = {"model": name, "prompt": "Once", "max_tokens": 4, **more}
    return asyncio.run(post(port_of(daemon), "/v1/completions", body))


def states(daemon: Serving) -> dict[str, str]:
    return {model["name"]: model["state"] for model in get(daemon, "/api/models")["models"]}


def card(daemon: Serving) -> dict[str, Any]:
    found: dict[str, Any] = get(daemon, "/api/devices")["devices"][0]
    return found


def takes(machine: PaperMachine, mib: int, prefix: str) -> dict[str, str]:
    return {"FAKE_CARD": str(machine.path), f"{prefix}_TAKES_MIB": str(mib)}


def kinds(folder: Path, machine: PaperMachine, hub: int, far: int) -> list[dict[str, Any]]:
    """Return a model of each kind; all that are here take 500 to 700 MiB."""
    command = [str(fake_server(folder)), "--port", "{port}", "--mib", "{memory_mib}"]
    return [
        {
            "name": "llama",
            "path": str(build_tiny_llama(folder / "tiny.gguf")),
            "env": takes(machine, 60, "FAKE"),
        },
        {
            "name": "vllm",
            "engine": "vllm",
            "path": str(hugging_face_folder(folder / "hf")),
            "command": [str(vllm_program(folder))],
            "env": takes(machine, 700, "STAND_IN"),
        },
        {
            "name": "command",
            "engine": "command",
            "command": command,
            "memory": "600MiB",
            "env": takes(machine, 500, "FAKE"),
        },
        {"name": "hub", "engine": "ollama", "model": "tiny", "address": f"http://127.0.0.1:{hub}"},
        {
            "name": "far",
            "engine": "remote",
            "model": "far-model",
            "address": f"http://127.0.0.1:{far}/v1",
            "health": "/health",
        },
    ]


def test_five_kinds_of_engine_share_a_card_under_load(tmp_path: Path) -> None:
    machine = PaperMachine(tmp_path, total_mib=1700)
    env = {"FAKE_CARD": str(machine.path)}
    with ollama_daemon(env) as hub, openai_server("far-model") as (far, _):
        config = {
            "defaults": {"keep_alive": "5m", "ctx": 512, "parallel": 2},
            "scheduling": {"min_residency": 0, "overdue": "2s"},
            "models": kinds(tmp_path, machine, hub, far),
        }
        with serve(tmp_path, config, machine) as daemon:
            names = [model["name"] for model in config["models"]]

            async def client(name: str, statuses: list[int]) -> None:
                for number in range(4):
                    body = {"model": name, "prompt": "Once", "max_tokens": 4, "stream": number % 2 == 1}
                    statuses.append((await post(port_of(daemon), "/v1/completions", body)).status)

            async def load() -> list[int]:
                statuses: list[int] = []
                await asyncio.gather(*(client(name, statuses) for name in names * 2))
                return statuses

            statuses = asyncio.run(load())
            assert statuses == [200] * len(statuses), daemon.output
            for name, kind in zip(names, ("llama.cpp", "vllm", "command", "ollama", "remote"), strict=True):
                expected = f'cotenant_requests_total{{model="{name}",runtime="{kind}",status="2xx"}} 8.0'
                assert expected in get(daemon, "/metrics", as_text=True)
            shared = card(daemon)
            assert shared["overcommitted"] is False
            freed = [d["text"] for name in names for d in story(daemon, name) if d["kind"] == "freed"]
            assert freed, "not all fit at once, so that some went and were seen to"
            assert not [d for name in names for d in story(daemon, name) if d["kind"] == "not_freed"]
        wait_until(lambda: machine.card()["used_mib"] == 0)


def test_each_llama_cpp_model_runs_on_the_server_that_its_entry_names(tmp_path: Path) -> None:
    entries, programs = [], {}
    for name in ("first", "second", "other"):
        folder = tmp_path / name
        folder.mkdir()
        entries.append({"name": name, "path": str(build_tiny_llama(folder / "m.gguf"))})
        if name != "other":
            programs[name] = entries[-1]["llama_server"] = str(fake_server(folder))
    with serve(tmp_path, {"models": entries}, PaperMachine(tmp_path, total_mib=4000)) as daemon:
        assert [complete(daemon, each["name"]).status for each in entries] == [200] * 3
        ran = {m["name"]: m["engine"]["program"] for m in get(daemon, "/api/models")["models"]}
    assert ran == {**programs, "other": str(tmp_path / "fake-llama-server")}


def test_the_first_preload_of_an_ollama_model_claims_what_it_takes_and_not_most_of_the_card(
    tmp_path: Path,
) -> None:
    with ollama_daemon() as hub:
        entry = {"name": "tiny", "engine": "ollama", "address": f"http://127.0.0.1:{hub}"}
        config = {"models": [{**entry, "preload": True, "pinned": True}]}
        path = tmp_path / "cotenant.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        argv = ["serve", "--config", str(path), "--port", "0", "--gpus", "24GiB"]
        with Serving(argv, tmp_path / "state") as daemon:
            daemon.address()
            wait_until(lambda: states(daemon)["tiny"] == "ready")
            assert "loading on GPU 0" in story(daemon, "tiny")[0]["text"]
            first = story(daemon, "tiny")[0]["facts"]["bytes"]
            assert first < 2000 * MIB
            wait_until(lambda: card(daemon)["claimed_bytes"] <= 310 * MIB)


def test_what_others_have_ollama_load_is_counted_and_its_models_are_listed(tmp_path: Path) -> None:
    with ollama_daemon() as hub:
        config = {"ollama": {"address": f"http://127.0.0.1:{hub}"}, "defaults": {"ctx": 512}}
        path = tmp_path / "cotenant.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        argv = ["serve", "--config", str(path), "--port", "0", "--gpus", "2000MiB"]
        with Serving(
            [*argv, "--reserve-mib", "100", "--min-budget-mib", "100"], tmp_path / "state"
        ) as daemon:
            daemon.address()
            wait_until(lambda: {"tiny", "embedder", "huge:70b"} == set(states(daemon)))
            ask(f"http://127.0.0.1:{hub}/api/embed", {"model": "embedder", "input": "x", "keep_alive": 3600})
            wait_until(lambda: card(daemon)["foreign_bytes"] == 100 * MIB)
            kinds = {model["name"]: model["kind"] for model in get(daemon, "/api/models")["models"]}
            assert kinds == {"tiny": "text", "embedder": "embedding", "huge:70b": "text"}
            answer = complete(daemon, "tiny:latest")
            assert answer.status == 200
            assert json.loads(answer.body)["model"] == "tiny:latest"
            wait_until(lambda: states(daemon)["tiny"] == "ready")
            assert card(daemon)["foreign_bytes"] == 100 * MIB, (
                "what it holds for us is claimed and not foreign"
            )
            copied = {"source": "tiny", "destination": "twin"}
            assert asyncio.run(post(hub, "/api/copy", copied)).status == 200
            asyncio.run(post(port_of(daemon), "/api/models/tiny/unload", {}))
            wait_until(lambda: states(daemon)["tiny"] == "cold")
            ask(f"http://127.0.0.1:{hub}/api/generate", {"model": "twin", "keep_alive": -1})
            wait_until(lambda: card(daemon)["foreign_bytes"] == 400 * MIB)
            assert complete(daemon, "tiny").status == 200
            wait_until(lambda: card(daemon)["foreign_bytes"] == 100 * MIB)
            assert [m["name"] for m in ask(f"http://127.0.0.1:{hub}/api/ps")["models"]][1:] == [
                "twin:latest"
            ], "models of the same weights are loaded once"
            refused = complete(daemon, "huge:70b")
            assert refused.status == 400 or refused.status == 503
            assert "does not fit" in refused.body.decode()
            assert daemon.terminate() == 0
            assert ask(f"http://127.0.0.1:{hub}/api/ps")["models"][0]["name"] == "embedder:latest"


@pytest.mark.parametrize("fault", ["", "STAND_IN_NO_SLEEP", "gibberish", "keeps"])
def test_vllm_sleeps_in_place_of_ending_if_that_works(tmp_path: Path, fault: str) -> None:
    machine = PaperMachine(tmp_path, total_mib=2000)
    env = takes(machine, 700, "STAND_IN")
    if fault == "STAND_IN_NO_SLEEP":
        env[fault] = "1"
    elif fault == "gibberish":
        env["STAND_IN_BAD_WAKE"] = fault
    elif fault == "keeps":
        env["STAND_IN_ASLEEP_MIB"] = "690"
    model = {
        "name": "vllm",
        "engine": "vllm",
        "path": str(hugging_face_folder(tmp_path / "hf")),
        "command": [str(vllm_program(tmp_path))],
        "sleep": 1,
        "env": env,
    }
    config = {"defaults": {"ctx": 512, "parallel": 2}, "models": [model], "scheduling": {"min_residency": 0}}
    with serve(tmp_path, config, machine) as daemon:
        first = complete(daemon, "vllm")
        assert first.status == 200
        wait_until(lambda: machine.card()["used_mib"] == 700)
        asyncio.run(post(port_of(daemon), "/api/models/vllm/unload", {}))
        wait_until(lambda: states(daemon)["vllm"] == "cold")
        sleeps = fault in ("", "gibberish")
        wait_until(lambda: machine.card()["used_mib"] == (64 if sleeps else 0))
        if sleeps:
            assert card(daemon)["foreign_bytes"] == 0, "what sleeps is nobody else's"
        again = complete(daemon, "vllm")
        assert json.loads(again.body)["choices"] == json.loads(first.body)["choices"]
        wait_until(lambda: machine.card()["used_mib"] == 700)
        told = " ".join(decision["text"] for decision in story(daemon, "vllm"))
        assert ("its answer differs from the one before it slept" in told) is (fault == "gibberish")
    wait_until(lambda: machine.card()["used_mib"] == 0)


def test_what_sleeps_gives_way_to_whoever_needs_the_rest_of_it(tmp_path: Path) -> None:
    machine = PaperMachine(tmp_path, total_mib=1000)
    config = {
        "defaults": {"ctx": 512, "parallel": 2},
        "scheduling": {"min_residency": 0},
        "models": [
            {
                "name": "sleeper",
                "engine": "vllm",
                "path": str(hugging_face_folder(tmp_path / "hf")),
                "command": [str(vllm_program(tmp_path))],
                "sleep": 2,
                "env": {**takes(machine, 600, "STAND_IN"), "STAND_IN_ASLEEP_MIB": "150"},
            },
            {
                "name": "large",
                "engine": "command",
                "command": [str(fake_server(tmp_path)), "--port", "{port}"],
                "memory": "850MiB",
                "env": takes(machine, 840, "FAKE"),
            },
        ],
    }
    with serve(tmp_path, config, machine) as daemon:
        assert complete(daemon, "sleeper").status == 200
        assert complete(daemon, "large").status == 200, daemon.output
        wait_until(lambda: states(daemon) == {"sleeper": "cold", "large": "ready"})
        wait_until(lambda: machine.card()["used_mib"] == 840)
        assert complete(daemon, "sleeper").status == 200
        assert daemon.terminate() == 0
        assert "memory is needed: sleeper" in daemon.output


def test_a_command_is_learned_by_what_it_is_seen_to_take(tmp_path: Path) -> None:
    machine = PaperMachine(tmp_path, total_mib=2000)
    model = {
        "name": "unknown",
        "engine": "command",
        "command": [str(fake_server(tmp_path)), "--port", "{port}"],
        "env": takes(machine, 300, "FAKE"),
    }
    config = {"models": [model], "scheduling": {"min_residency": 0}}

    def claim(daemon: Serving) -> int:
        return int(card(daemon)["claimed_bytes"])

    with serve(tmp_path, config, machine) as daemon:
        assert complete(daemon, "unknown").status == 200
        (load,) = (d for d in story(daemon, "unknown") if d["kind"] == "load")
        assert load["facts"]["bytes"] == int(0.8 * 2000 * MIB), "at first it gets most of a card"
        wait_until(lambda: claim(daemon) == int(1.05 * 300 * MIB))
        wait_until(lambda: get(daemon, "/api/models")["models"][0]["measured_bytes"] == 300 * MIB)
        asyncio.run(post(port_of(daemon), "/api/models/unknown/unload", {}))
        wait_until(lambda: states(daemon)["unknown"] == "cold")
        assert complete(daemon, "unknown").status == 200
        assert claim(daemon) == int(1.05 * 300 * MIB)
    with serve(tmp_path, config, machine) as daemon:
        assert complete(daemon, "unknown").status == 200
        assert claim(daemon) == int(1.05 * 300 * MIB), "it is remembered from one run to the next"


def test_a_remote_model_is_served_with_its_own_name_and_key_and_takes_nothing(tmp_path: Path) -> None:
    machine = PaperMachine(tmp_path, total_mib=500)
    with openai_server("far-model") as (port, process):
        model = {
            "name": "near",
            "engine": "remote",
            "model": "far-model",
            "address": f"http://127.0.0.1:{port}",
            "api_key": "s3cret",
            "health": "/health",
        }
        here = {"name": "here", "path": str(build_tiny_llama(tmp_path / "tiny.gguf"))}
        config = {"defaults": {"max_loaded": 1, "ctx": 512}, "models": [here, model]}
        with serve(tmp_path, config, machine) as daemon:
            assert complete(daemon, "here").status == 200
            claimed = card(daemon)["claimed_bytes"]
            assert complete(daemon, "near").status == 200
            assert card(daemon)["claimed_bytes"] == claimed
            assert states(daemon) == {"here": "ready", "near": "ready"}, "it counts not towards max_loaded"
            process.kill()
            process.wait()
            refused = complete(daemon, "near")
            assert refused.status in (502, 503)
            assert "s3cret" not in get(daemon, "/api/models", as_text=True)
            assert "s3cret" not in daemon.output
