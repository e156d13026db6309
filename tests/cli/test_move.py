"""`cotenant move`, `gpus drain` and `gpus undrain`, which ask a daemon."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cotenant.cli.main import main
from cotenant.domain.decisions import ModelStatus, OtherEngine
from cotenant.domain.errors import CannotMove, UnknownDevice
from cotenant.domain.moves import DeviceChange, MoveMethod, MovePlan
from cotenant.domain.units import GIB
from tests.cli.test_daemon_commands import running
from tests.support.daemon.plain_operator import CARD, HOST, PlainOperator

PLAN = MovePlan(
    "org/llama",
    MoveMethod.LIVE,
    "moves live from GPU 0 a to GPU 1 b: both hold memory",
    ("GPU 0 a",),
    ("GPU 1 b",),
    (
        DeviceChange("GPU-a", 0, "a", 24 * GIB, 8 * GIB, 8 * GIB, 0),
        DeviceChange("GPU-b", 1, "b", 24 * GIB, 0, 8 * GIB, 8 * GIB),
    ),
    4.0,
)
STAYS = MovePlan("c", MoveMethod.STAY, "it is pinned and can be nowhere else")


class PlainMover:
    """Moves everything but to GPU 9, and notes what was ordered."""

    def __init__(self) -> None:
        self.orders: list[str] = []

    def plan_move(self, name: str, gpus: Sequence[str]) -> MovePlan:
        if "9" in gpus:
            raise UnknownDevice("'9' is no GPU of this daemon", hint="There are: GPU 0 a, GPU 1 b.")
        return PLAN

    async def move(self, name: str, gpus: Sequence[str]) -> MovePlan:
        self.orders.append(f"move {name} to {', '.join(gpus)}")
        if "0" in gpus:
            raise CannotMove(f"{name} does not move: it is there already")
        return self.plan_move(name, gpus)

    def cancel_move(self, name: str) -> None:
        self.orders.append(f"cancel {name}")

    def plan_drain(self, gpu: str) -> Sequence[MovePlan]:
        return (PLAN, STAYS)

    async def drain(self, gpu: str, drained: bool) -> None:
        self.orders.append(f"{'drain' if drained else 'undrain'} {gpu}")


def ordered(*argv: str) -> tuple[int, list[str]]:
    mover = PlainMover()
    with running(PlainOperator(), mover=mover) as address:
        return main([*argv, "--address", address]), mover.orders


def test_a_dry_run_shows_the_bytes_during_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    assert ordered("move", "gpt", "--to", "1", "--dry-run") == (0, [])
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["models", "hold", "now", "during", "after", "of"],
        ["GPU", "0", "a", "8.0", "GiB", "8.0", "GiB", "0", "B", "24.0", "GiB"],
        ["GPU", "1", "b", "0", "B", "8.0", "GiB", "8.0", "GiB", "24.0", "GiB"],
    ]


def test_a_move_says_where_the_model_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert ordered("move", "gpt", "--to", "1, 2") == (0, ["move org/llama to 1, 2"])
    assert capsys.readouterr().out == "org/llama is served from GPU 1 b now\n"
    assert ordered("move", "gpt", "--cancel") == (0, ["cancel org/llama"])
    assert capsys.readouterr().out == "org/llama stays where it is\n"
    assert ordered("move", "gpt", "--to", "1", "--json")[0] == 0
    assert json.loads(capsys.readouterr().out)["method"] == "live"


@pytest.mark.parametrize(
    ("to", "status", "says"),
    [("9", 2, "no GPU of this daemon"), ("0", 1, "there already"), ("1,,2", 1, "a move needs `to`")],
)
def test_why_a_model_does_not_move(
    to: str, status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ordered("move", "gpt", "--to", to)[0] == status
    assert says in capsys.readouterr().err


def test_a_drain_says_what_becomes_of_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert ordered("gpus", "drain", "0", "--dry-run") == (0, [])
    assert capsys.readouterr().out.splitlines() == [
        "GPU 0 would be drained: nothing new is placed there",
        "  org/llama moves live from GPU 0 a to GPU 1 b: both hold memory; about 4.0 s",
        "  c stays: it is pinned and can be nowhere else",
    ]
    assert ordered("gpus", "drain", "0") == (0, ["drain 0"])
    assert ordered("gpus", "undrain", "0") == (0, ["undrain 0"])


def test_an_action_takes_what_was_given_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    mover = PlainMover()
    with running(PlainOperator(), mover=mover) as address:
        assert main(["gpus", "--address", address, "--json", "undrain", "1"]) == 0
    assert mover.orders == ["undrain 1"]
    assert "models" in json.loads(capsys.readouterr().out)


def test_ps_shows_both_engines_while_a_model_moves(capsys: pytest.CaptureFixture[str]) -> None:
    leaving = OtherEngine("leaving", "draining", {"GPU-a": 8 * GIB}, 3)
    moved = ModelStatus("org/llama", "ready", predicted_bytes=8 * GIB, others=(leaving,))
    operator = PlainOperator(moved, devices=[replace(CARD, drain="draining"), HOST])
    with running(operator) as address:
        assert main(["ps", "--address", address]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[2].split()[:8] == ["org/llama", "draining,", "leaving", "0", "8.0", "GiB", "-", "-"]
    assert "3" in out[2].split()
    assert any(line.endswith("DRAINING") for line in out)
