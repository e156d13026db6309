"""Copies of a model on several machines, one of which is silent, lost or found with engines."""

from cotenant.domain.residencies import Copies, ResidencyState
from tests.scheduling.harness import Bench, model
from tests.scheduling.test_silent_nodes import back, found, lost, on_two_nodes, silent, state_of

TWO = Copies(2, 2)


def on_both() -> Bench:
    bench = on_two_nodes(model("m", 20, copies=TWO))
    bench.touch("m")
    bench.ready("m#2")
    assert (bench.where("m"), bench.where("m#2")) == (["GPU-a0"], ["GPU-b0"])
    return bench


def test_while_one_node_is_silent_the_copy_on_another_serves_at_once() -> None:
    bench = on_both()
    silent(bench)
    assert bench.where("m") == ["GPU-b0"]
    assert bench.ask("m") in bench.granted
    assert not bench.loading
    back(bench)
    assert state_of(bench, "m#2") == [ResidencyState.READY]
    assert bench.ask("m") in bench.granted


def test_a_lost_node_costs_its_copy_and_no_more() -> None:
    bench = on_both()
    lost(bench)
    assert bench.where("m") == ["GPU-b0"]
    assert "m#2" not in bench.loading, "there is no other card"
    assert bench.ask("m") in bench.granted


def test_found_engines_are_taken_over_as_copies_up_to_as_many_as_there_may_be() -> None:
    bench = on_two_nodes(model("m", 20, copies=TWO), cards=2)
    for engine, device in (("x", "GPU-a0"), ("y", "GPU-b0"), ("z", "GPU-b1")):
        found(bench, "m", device, 20, engine=engine)
    assert ([*bench.adopted], [*bench.discarded]) == (["x", "y"], ["z"])
    assert (bench.where("m"), bench.where("m#2")) == (["GPU-a0"], ["GPU-b0"])
