"""A model whose GPUs are lost runs on others, if it may and if it does not fit what is left of its own."""

from dataclasses import replace

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.scheduling import events
from cotenant.scheduling.model_spec import ModelSpec
from tests.scheduling.harness import GB, Bench, card, fit_whole, model


def on(indices: set[int], gb: float, *, may_move: bool = True) -> ModelSpec:
    """A model of one piece that is for these cards."""
    anywhere = fit_whole(round(gb * GB))
    ids = {f"GPU-{index}" for index in indices}

    def elsewhere(devices):
        return None if ids <= {device.id for device in devices} else anywhere

    def own(budgets):
        return anywhere([budget for budget in budgets if budget.device.id in ids])

    return replace(model("a", 0), fit=own, elsewhere=elsewhere if may_move else None)


def where(bench: Bench) -> set[str]:
    return {device for residency in bench.state.residencies.values() for device in residency.bytes_by_device}


def test_while_its_gpu_is_lost_a_model_is_loaded_on_another_with_a_warning_and_then_at_home_again() -> None:
    bench = Bench.of([on({1}, 8, may_move=True)], [card(0), card(1)])
    bench.touch("a")
    assert where(bench) == {"GPU-1"}
    bench.read(card(0))
    bench.gone("a")
    bench.ready("a")
    assert where(bench) == {"GPU-0"}
    assert "warning" in bench.told(DecisionKind.LOAD)[-1]
    bench.read(card(0), card(1))
    assert where(bench) == {"GPU-0"}, "it stays until it is loaded again"
    bench.send(events.UnloadAsked(bench.now, "a"))
    bench.gone("a")
    bench.touch("a")
    assert where(bench) == {"GPU-1"}
    assert "warning" not in bench.told(DecisionKind.LOAD)[-1]


def test_one_that_may_not_move_is_refused_and_told_to_come_back() -> None:
    bench = Bench.of([on({1}, 8, may_move=False)], [card(0), card(1)])
    bench.read(card(0))
    refused = bench.refused[bench.ask("a")]
    assert "GPU 1 card is lost" in refused.text
    assert refused.retry_after_s is not None


@pytest.mark.parametrize(("gb", "index"), [(8, 1), (20, 0)])
def test_what_is_left_of_its_gpus_goes_first_if_it_fits_there(gb: float, index: int) -> None:
    bench = Bench.of([on({1, 2}, gb)], [card(0), card(1, 10), card(2)])
    bench.read(card(0), card(1, 10))
    bench.touch("a")
    assert where(bench) == {f"GPU-{index}"}


def test_a_model_that_is_too_large_for_its_gpus_does_not_move_while_they_are_there() -> None:
    bench = Bench.of([on({1}, 20)], [card(0), card(1, 10)])
    assert bench.refused[bench.ask("a")].retry_after_s is None


def test_room_is_made_on_another_gpu_as_on_its_own() -> None:
    bench = Bench.of([on({1}, 20), model("idle", 20)], [card(0), card(1)])
    bench.touch("idle")
    bench.read(card(0))
    bench.now += 5
    bench.ask("a")
    assert "idle" in bench.stopping
