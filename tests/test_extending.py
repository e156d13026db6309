"""docs/extending.md is true: what it lists is enough to add a kind, a vendor, a launcher, a policy."""

import json
import re
from pathlib import Path

import pytest

from cotenant.clock import SystemClock
from cotenant.config.configuration import Configuration
from cotenant.config.settings import read_configuration
from cotenant.domain.devices import HOST_ID, Device, DeviceKind, launch_environment
from cotenant.domain.errors import BadSetting, EngineLacksDevice
from cotenant.domain.launching import LaunchOptions
from cotenant.domain.placements import Placement
from cotenant.domain.units import GIB
from cotenant.engines.launch import launchers
from cotenant.engines.launch.cards import CARD_OPTIONS, card_options
from cotenant.engines.launch.plan import LaunchPlan
from cotenant.hardware.gpus.inventory import probe
from cotenant.planning.budgets import BudgetRules, budgets
from cotenant.planning.planner import place
from tests.scheduling.harness import Bench, card, model
from tests.support import extensions
from tests.support.containers.engine_images import launched
from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.http.client import post

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
ECHO = "{engine: echo, name: e, memory: 2GiB}"


def read(folder: Path, text: str) -> Configuration:
    path = folder / "cotenant.yaml"
    path.write_text(text, encoding="utf-8")
    return read_configuration(path, environment={})


def test_a_new_kind_of_engine_is_read_checked_and_planned_by_its_traits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extensions.add_vendor(monkeypatch)
    kind = extensions.add_engine_kind(monkeypatch)
    (entry,) = read(tmp_path, f"models: [{ECHO}]").models
    assert entry.recipe.engine is kind
    with pytest.raises(BadSetting, match="echo takes no n_batch"):
        read(tmp_path, f"models: [{ECHO[:-1]}, n_batch: 64}}]")
    with pytest.raises(BadSetting, match="it has no memory, which echo needs"):
        read(tmp_path, "models: [{engine: echo, name: e}]")
    rules = BudgetRules(reserve_bytes=0)
    placement = place(entry.request, budgets(probe(None, SystemClock()).inventory(), rules), rules)
    assert isinstance(placement, Placement)
    (share,) = placement.used_shares
    assert (share.device.name, share.parts.total) == ("Acme One", 2 * GIB)


@pytest.mark.slow
async def test_a_new_kind_of_engine_is_loaded_and_served_by_the_daemon_on_cards_of_a_new_vendor(
    tmp_path: Path,
) -> None:
    models = [{"engine": "echo", "name": name, "memory": "16GiB"} for name in ("a", "b")]
    config = {"scheduling": {"policy": "alphabetical", "min_residency": 0}, "models": models}
    (tmp_path / "cotenant.yaml").write_text(json.dumps(config))
    argv = ["serve", "--config", str(tmp_path / "cotenant.yaml"), "--port", "0"]
    with Serving(argv, tmp_path / "state", module="tests.support.extensions") as daemon:
        for name in ("a", "b"):
            reply = await post(port_of(daemon), "/v1/completions", {"model": name, "prompt": "x"})
            assert reply.status == 200, reply.body
            assert json.loads(reply.body)["choices"][0]["text"] == name
        (device,) = get(daemon, "/api/devices")["devices"]
        assert device["name"] == "Acme One"
        assert device["claimed_bytes"] == 16 * GIB, "a was evicted for b"
        states = {each["name"]: each["runtime"] for each in get(daemon, "/api/models")["models"]}
        assert states == {"a": "echo", "b": "echo"}


def test_cards_of_a_new_vendor_are_shown_to_engines_and_given_to_containers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vendor = extensions.add_vendor(monkeypatch)
    inventory = probe(None, SystemClock()).inventory()
    assert inventory.vendor is vendor
    assert launch_environment(inventory.devices) == {"ACME_VISIBLE": "7"}
    hidden = launch_environment([Device(HOST_ID, DeviceKind.HOST, "host RAM")])
    assert (hidden["ACME_VISIBLE"], hidden["CUDA_VISIBLE_DEVICES"]) == ("none", "-1")
    docker = extensions.LauncherKind.DOCKER.traits.cards
    assert card_options("m", inventory.devices, docker, rootless=False) == ["--acme=7"]
    monkeypatch.delitem(CARD_OPTIONS, vendor)  # type: ignore[arg-type]
    with pytest.raises(EngineLacksDevice, match="containers cannot be given GPU 0 Acme One"):
        card_options("m", inventory.devices, docker, rootless=False)


async def test_a_new_launcher_starts_engines_in_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = extensions.add_launcher(monkeypatch)
    text = (
        "models: [{engine: command, name: c, command: [sh], launcher: chroot, image: debian, memory: 1GiB}]"
    )
    (entry,) = read(tmp_path, text).models
    assert entry.launch == LaunchOptions(kind, "debian")
    with pytest.raises(BadSetting, match="chroot needs an image"):
        read(tmp_path, text.replace(", image: debian", ""))
    plan = LaunchPlan("c", ("sh", "-c", "echo in $IMAGE"), 1, launch=entry.launch)
    engine = await launched(launchers, plan, tmp_path / "log")
    assert await engine.wait() == 0
    assert (tmp_path / "log").read_text() == "in debian\n"


def test_a_new_eviction_policy_is_configured_by_its_name_and_chooses_the_victims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = extensions.add_policy(monkeypatch)
    assert read(tmp_path, f"scheduling: {{policy: {name}}}").scheduling.policy == name
    for policy, victim in ((name, "a"), ("lru", "z")):
        bench = Bench.of([model("z", 10), model("a", 10), model("new", 10)], [card(0)], policy=policy)
        for loaded in ("z", "a"):
            bench.touch(loaded)
            bench.now += 100
        bench.ask("new")
        assert set(bench.stopping) == {victim}


def test_the_files_that_the_page_names_exist() -> None:
    named = re.findall(r"`([\w./<>-]+(?:\.(?:py|md|html|json)|/))`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 20
    for name in named:
        path = re.sub(r"<[^>]*>.*", "", name)
        assert (ROOT / "src" / "cotenant" / path).exists() or (ROOT / path).exists(), name
