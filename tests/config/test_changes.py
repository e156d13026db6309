from pathlib import Path

import pytest

from cotenant.config.changes import diff
from tests.config.conftest import Reader

BEFORE = "models: [{path: models/tiny.gguf, name: a, %s}]"


@pytest.mark.parametrize(
    "given", ["ctx: 8192", "gpus: [0]", "env: {A: 1}", "args: [--x]", "cache_type_k: q8_0", "parallel: 1"]
)
def test_what_the_engine_was_told_makes_it_load_anew(read: Reader, given: str) -> None:
    changes = diff(read(BEFORE % "pinned: no"), read(BEFORE % given))
    assert [model.name for model in changes.reloaded] == ["a"]
    assert not changes.adjusted
    assert changes.sentences() == ("a changed: it is loaded again",)


@pytest.mark.parametrize(
    "given",
    [
        "pinned: yes",
        "priority: 5",
        "keep_alive: 0",
        "aliases: [b]",
        "timeout: 1s",
        "preload: yes",
        "copies: 2",
    ],
)
def test_rules_change_without_touching_the_engine(read: Reader, given: str) -> None:
    changes = diff(read(BEFORE % "pinned: no"), read(BEFORE % given))
    assert [model.name for model in changes.adjusted] == ["a"]
    assert not changes.reloaded


def test_another_content_of_the_same_file_makes_it_load_anew(read: Reader, folder: Path) -> None:
    before = read("models_dir: models")
    path = folder / "models" / "tiny.gguf"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert [model.name for model in diff(before, read("models_dir: models")).reloaded] == ["tiny"]


def test_models_come_and_go_and_other_settings_are_named(read: Reader) -> None:
    before = read(BEFORE % "pinned: no")
    after = read("models: [{path: models/tiny.gguf, name: b}]\nserver: {port: 1}\nwarm: {ram_mib: 5}")
    changes = diff(before, after)
    assert ([m.name for m in changes.added], [m.name for m in changes.removed]) == (["b"], ["a"])
    assert changes.settings == ("server.port", "warm_ram_bytes")


def test_of_the_section_about_machines_each_key_says_whether_it_needs_a_start(read: Reader) -> None:
    before = read("nodes: {suspect_after: 3s}")
    after = read(
        "nodes: {suspect_after: 4s, lease: 2m, pull: hub, gate_port: 1, address: '10.0.0.1:1', fleet: x}"
    )
    assert diff(before, after).sentences() == (
        "nodes.address changed: it takes effect at the next start",
        "nodes.fleet changed: it takes effect at the next start",
        "nodes.suspect_after changed",
        "nodes.lease changed",
        "nodes.gate_port changed",
        "nodes.pull changed",
    )
    none = read("")
    assert diff(none, before).sentences() == ("nodes changed: it takes effect at the next start",)
    assert diff(before, none).settings == ("nodes",)


def test_a_model_that_is_kept_to_other_machines_is_loaded_again(read: Reader) -> None:
    nodes = "nodes: {launcher: ray}\n"
    changes = diff(read(nodes + BEFORE % "pinned: no"), read(nodes + BEFORE % "nodes: [b]"))
    assert changes.sentences() == ("a changed: it is loaded again",)


def test_nothing_changes_between_two_readings_of_one_file(read: Reader) -> None:
    text = "models_dir: models\n" + BEFORE % "env: {A: 1}"
    assert not diff(read(text), read(text))


def test_what_is_drained_changes_at_once(read: Reader) -> None:
    before, after = read("devices: {drain: []}"), read("devices: {drain: [0, GPU-1a]}")
    assert (before.devices.drain, after.devices.drain) == ((), ("0", "GPU-1a"))
    assert diff(before, after).sentences() == ("devices.drain changed",)
