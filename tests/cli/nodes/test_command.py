"""`cotenant nodes`, and what other commands show where there are several machines."""

import json
from dataclasses import asdict, replace

import pytest

from cotenant.cli.main import main
from cotenant.cli.nodes.command import node_lines
from cotenant.domain.decisions import DeviceStatus, ModelStatus, NodeState
from tests.cli.test_daemon_commands import running
from tests.support.daemon.plain_nodes import READY, SILENT, PlainNodes
from tests.support.daemon.plain_operator import CARD, PlainOperator

ON_A = replace(CARD, node="a")
ON_B = replace(CARD, uuid="GPU-b", node="b", left_out="node b has not answered for 4.0 s")
LLAMA = ModelStatus("org/llama", "suspended", devices=("GPU-b",), node="b", launcher="ray")


def ordered(*argv: str, devices: tuple[DeviceStatus, ...] = (ON_A, ON_B)) -> tuple[int, list[str]]:
    nodes = PlainNodes(READY, SILENT, replace(SILENT, name="gone", state=NodeState.LOST, warnings=()))
    with running(PlainOperator(LLAMA, devices=devices), nodes=nodes) as address:
        return main([*argv, "--address", address]), nodes.orders


def test_machines_are_listed_with_whether_they_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert ordered("nodes", "list")[0] == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["NODE", "STATE", "SINCE", "GPUS", "FREE"]
    assert "ready" in lines[1]
    assert "10.0 GiB" in lines[1]
    assert "suspect, silent for 4.0 s" in lines[2]
    assert lines[-1] == "b: its clock is 3 s ahead"
    lacks = replace(
        READY, warnings=("a was started without RAY_x: it fails", "the head a was started without y")
    )
    assert [*node_lines({"nodes": [asdict(lacks)], "launcher": "ray", "problem": None})][2:] == [
        *lacks.warnings
    ]
    assert ordered("nodes", "list", "--json")[0] == 0
    assert [node["name"] for node in json.loads(capsys.readouterr().out)["nodes"]] == ["a", "b", "gone"]


def test_without_other_machines_the_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with running(PlainOperator()) as address:
        assert main(["nodes", "list", "--address", address]) == 0
        assert "`nodes:` is not configured" in capsys.readouterr().out
        assert main(["nodes", "drain", "b", "--address", address]) == 2
        assert "there is no machine 'b'" in capsys.readouterr().err


def test_a_machine_is_drained_used_again_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    assert ordered("nodes", "drain", "a", "--dry-run") == (0, [])
    assert "a would be drained" in capsys.readouterr().out
    assert ordered("nodes", "drain", "a") == (0, ["drain a"])
    out = capsys.readouterr().out
    assert "a is drained: nothing new is placed there" in out
    assert "llama is unloaded from a GPU 0 once it is idle" in out
    assert ordered("nodes", "undrain", "a") == (0, ["undrain a"])
    assert capsys.readouterr().out == "a is used again\n"
    assert ordered("nodes", "forget", "gone")[0] == 0
    assert capsys.readouterr().out == "gone is missed no more\n"
    assert ordered("nodes", "forget", "a")[0] == 1
    assert "a answers" in capsys.readouterr().err
    assert ordered("nodes", "drain", "nowhere")[0] == 2
    assert "There are: a, b, gone." in capsys.readouterr().err


def test_ps_names_the_machine_of_each_model_and_card(capsys: pytest.CaptureFixture[str]) -> None:
    ordered("ps")
    out = capsys.readouterr().out
    (heading, model), cards = [line.split() for line in out.splitlines()[:2]], out.splitlines()[4:]
    assert heading[:4] == ["model", "state", "NODE", "GPU"]
    assert model[:4] == ["org/llama", "suspended", "b", "0"]
    assert cards[0].startswith("a GPU 0 RTX 3090")
    assert "node b has not answered for 4.0 s" in cards[1]
    ordered("ps", devices=(CARD,))
    assert "NODE" not in capsys.readouterr().out


def test_top_and_gpus_name_machines_too(capsys: pytest.CaptureFixture[str]) -> None:
    ordered("top", "--once")
    out = capsys.readouterr().out
    assert "NODE" in out
    assert "b GPU 0 RTX 3090" in out
    ordered("gpus")
    out = capsys.readouterr().out
    assert "GPUs of the daemon's machines" in out
    rows = [line.split() for line in out[out.index("NODE") :].splitlines()]
    assert rows[0][:3] == ["NODE", "GPU", "name"]
    assert [row[:2] for row in rows[1:3]] == [["a", "0"], ["b", "0"]]
    ordered("gpus", devices=(CARD,))
    assert "NODE" not in capsys.readouterr().out
