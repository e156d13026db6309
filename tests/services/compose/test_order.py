import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.services.compose.order import Move, Step, ordered
from cotenant.services.model import Assignment, GpuRef


def move(name: str, before: int | None, after: int | None, *, critical: bool = False) -> Move:
    return Move(name, _on(name, before), _on(name, after), critical)


def _on(name: str, gpu: int | None, budget_gb: float | None = None, *more: int) -> Assignment | None:
    gpus = tuple(GpuRef(index) for index in more)
    return None if gpu is None else Assignment(name, gpu, vram_budget_gb=budget_gb, more=gpus)


def test_who_comes_waits_for_who_leaves():
    assert ordered([move("comes", 1, 0), move("leaves", 0, 2)]) == (
        Step("leaves"),
        Step("comes", after=("leaves",)),
    )


def test_services_that_have_nothing_to_do_with_each_other_do_not_wait():
    assert ordered([move("a", 0, 1), move("b", 2, 3)]) == (Step("a"), Step("b"))


def test_of_two_that_change_places_one_is_stopped_first():
    steps = ordered([move("a", 0, 1), move("b", 1, 0)])

    assert steps == (Step("b", after=("a",)), Step("a", after=("b",), stop_first=True))


def test_the_latency_critical_one_of_a_circle_stays_up_longer():
    steps = ordered([move("a", 0, 1, critical=True), move("b", 1, 0)])

    assert [step.service for step in steps if step.stop_first] == ["b"]


def test_a_smaller_budget_comes_before_a_larger_one_on_the_same_gpu():
    shrinks = Move("shrinks", _on("shrinks", 0, 8.0), _on("shrinks", 0, 2.0))
    grows = Move("grows", _on("grows", 0, 2.0), _on("grows", 0, 8.0))

    assert ordered([grows, shrinks]) == (Step("shrinks"), Step("grows", after=("shrinks",)))


def test_an_unpinned_service_is_taken_to_be_on_the_first_gpu():
    assert ordered([move("comes", 1, 0), move("was-unpinned", None, 1)])[0].stop_first is False
    assert [step.stop_first for step in ordered([move("comes", 1, 0), move("was-unpinned", None, 1)])] == [
        False,
        True,
    ]


def test_each_gpu_of_a_service_on_several_counts():
    """`wide` comes to GPU 1 and takes less of GPU 0; its budget is for both together."""
    wide = Move("wide", _on("wide", 0, 8.0), _on("wide", 0, 8.0, 1))
    assert (wide.frees, wide.needs) == ({0}, {1})
    assert ordered([wide, move("leaves", 1, 2), move("comes", 3, 0)]) == (
        Step("leaves"),
        Step("wide", after=("leaves",)),
        Step("comes", after=("wide",)),
    )


gpus = st.none() | st.integers(0, 3)
budgets = st.none() | st.sampled_from([1.0, 2.0, 4.0])


@st.composite
def many_moves(draw):
    names = [f"s{index}" for index in range(draw(st.integers(0, 7)))]
    return [
        Move(
            name,
            _on(name, draw(gpus), draw(budgets), *draw(st.sets(st.integers(4, 6), max_size=2))),
            _on(name, draw(gpus), draw(budgets), *draw(st.sets(st.integers(4, 6), max_size=2))),
            draw(st.booleans()),
        )
        for name in names
    ]


@pytest.mark.slow
@given(many_moves(), st.randoms(use_true_random=False))
def test_nobody_comes_before_all_who_leave_have_left(moves, random):
    """In any order that the steps allow, all of them are taken, and memory goes before it is needed."""
    steps = ordered(moves)
    assert sorted(step.service for step in steps) == sorted(move.service for move in moves)
    by_name = {move.service: move for move in moves}
    freed = {step.service for step in steps if step.stop_first}
    waiting = list(steps)
    while waiting:
        ready = [step for step in waiting if set(step.after) <= freed]
        assert ready, "nothing can go on"
        step = random.choice(ready)
        mine = by_name[step.service]
        others = [other for other in moves if other.service != step.service]
        assert not [other for other in others if other.frees & mine.needs and other.service not in freed]
        freed.add(step.service)
        waiting.remove(step)


@given(many_moves())
def test_nobody_is_stopped_where_an_order_suffices(moves):
    steps = ordered(moves)
    waits = {step.service: set(step.after) for step in steps}
    done: set[str] = set()
    while ready := {name for name in waits if name not in done and waits[name] <= done}:
        done |= ready

    assert any(step.stop_first for step in steps) == (len(done) < len(waits))
    assert ordered(moves) == steps
