from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain.devices import HOST_ID
from cotenant.domain.fragmentation import Defragmentation, ModelMove
from cotenant.domain.models import Parts
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.planning.defragment import PackingProblem, Resident
from cotenant.planning.defragment import defragment as search
from cotenant.planning.device_choice import choose_devices
from cotenant.planning.device_needs import Fit
from cotenant.planning.fragmentation import DeviceRoom, FreeMemory, LoadableModel
from cotenant.planning.needs import Needs
from tests.scheduling.harness import fit_over, fit_whole
from tests.support.models.shapes import gpu


def device(number: int) -> str:
    return f"GPU-{number}"


def only_on(fit: Fit, allowed: Sequence[int], host_bytes: int = 0) -> Fit:
    """A model that may be on these cards alone, and holds so much of host RAM besides."""
    ids = [device(number) for number in allowed]

    def placed(budgets: Sequence[Budget]) -> Placement | Refusal:
        found = fit([budget for budget in budgets if budget.device.id in ids])
        return replace(found, host=Parts(kv=host_bytes)) if isinstance(found, Placement) else found

    return placed


def crowding(
    free: Sequence[int],
    model: int | tuple[int, ...],
    residents: dict[str, tuple[int, int]],
    *,
    may: dict[str, Sequence[int]] | None = None,
    model_may: Sequence[int] | None = None,
    closed: Sequence[int] = (),
    slots: dict[int, int] | None = None,
    busy: Sequence[str] = (),
    host: tuple[int, dict[str, int]] | None = None,
) -> PackingProblem:
    """Cards with so much free, the size of a model or of its parts, and where models of which size are."""
    cards = range(len(free))
    rooms = []
    for number, count in enumerate(free):
        budget = replace(gpu(number, 0), budget_bytes=max(0, count))
        if number in closed:
            budget = replace(budget, budget_bytes=0, left_out="it is drained")
        rooms.append(DeviceRoom(budget, count, 1000))
    host_free, host_held = host or (0, {})
    placed = fit_whole(model) if isinstance(model, int) else fit_over(model)
    return PackingProblem(
        LoadableModel("new", only_on(placed, cards if model_may is None else model_may)),
        FreeMemory((), tuple(rooms), None if host is None else replace(gpu(99, 0), budget_bytes=host_free)),
        tuple(
            Resident(
                name,
                only_on(fit_whole(size), (may or {}).get(name, cards), host_held.get(name, 0)),
                {device(on): size, **({HOST_ID: host_held[name]} if name in host_held else {})},
                idle=name not in busy,
            )
            for name, (on, size) in residents.items()
        ),
        {device(number): count for number, count in (slots or {}).items()},
    )


def defragment(problem: PackingProblem, *steps: int) -> Defragmentation:
    return search(problem, Needs(), *steps)


def moved(found) -> list[tuple[str, str]]:
    return [(move.model, move.to) for move in found.moves]


def test_a_model_makes_way_to_the_card_that_has_room_for_it():
    found = defragment(crowding([10, 10], 18, {"gemma": (0, 9), "large": (1, 14)}))
    assert found.fits
    assert found.text == "new would fit if gemma moved to GPU 1"
    assert found.moves == (ModelMove("gemma", ("GPU-0",), "GPU-1", 9, live=True),)
    assert found.at_least == 1


def test_nothing_moves_for_a_model_that_fits():
    found = defragment(crowding([10, 4], 9, {"a": (0, 9)}))
    assert (found.fits, found.moves, found.at_least) == (True, (), 0)


def test_a_chain_makes_room_where_there_is_none():
    # b must leave GPU 1 before a can enter it.
    found = defragment(crowding([8, 2, 6], 12, {"a": (0, 7), "b": (1, 6), "c": (2, 4)}))
    assert moved(found) == [("b", "GPU-2"), ("a", "GPU-1")]
    assert found.text == "new would fit if b moved to GPU 2 and a to GPU 1"


def test_of_as_many_moves_those_of_the_fewest_bytes_are_proposed():
    found = defragment(crowding([10, 10], 14, {"a": (0, 9), "b": (0, 4)}))
    assert moved(found) == [("b", "GPU-1")]


@pytest.mark.parametrize(
    "facts",
    [{"may": {"a": [0]}}, {"closed": [1]}, {"model_may": [1]}, {"slots": {1: 0}}],
    ids=["gpus of the model that would move", "drained", "gpus of the new one", "compute mode"],
)
def test_no_move_goes_where_nothing_may_go(facts):
    assert defragment(crowding([10, 5], 14, {"a": (0, 4)})).fits
    found = defragment(crowding([10, 5], 14, {"a": (0, 4)}, **facts))
    assert (found.fits, found.at_least) == (False, None)


def test_a_card_that_admits_one_engine_is_freed_of_it():
    found = defragment(crowding([20, 5], 10, {"a": (0, 4)}, slots={0: 0}))
    assert moved(found) == [("a", "GPU-1")]


def test_a_model_that_has_no_room_twice_in_host_ram_is_reloaded_and_only_if_idle():
    facts = {"host": (3, {"a": 5})}
    found = defragment(crowding([10, 5], 14, {"a": (0, 4)}, **facts))
    assert [move.live for move in found.moves] == [False]
    assert not defragment(crowding([10, 5], 14, {"a": (0, 4)}, busy=["a"], **facts)).fits


def test_a_split_model_gets_room_on_all_of_its_cards():
    found = defragment(crowding([9, 2, 20], (8, 8, 8), {"a": (1, 7)}))
    assert moved(found) == [("a", "GPU-2")]


def test_eight_cards_and_twenty_four_models_are_searched_in_full():
    exact = []
    for seed in range(12):
        dice, free, residents = Random(seed), [480] * 8, {}
        for number in range(24):
            size = dice.randint(24, 200)
            on = dice.choice([d for d in range(8) if free[d] >= size])
            free[on] -= size
            residents[f"m{number}"] = on, size
        found = defragment(crowding(free, min(480, max(free) + 60), residents))
        exact.append(found.fits and len(found.moves) == found.at_least)
    assert all(exact)


def test_a_search_that_is_cut_off_proposes_what_it_has_and_says_how_few_might_do():
    free, residents = [2, 2, 2, 21], {f"m{n}": (n % 3, 7) for n in range(9)}
    whole = defragment(crowding(free, 23, residents))
    assert len(whole.moves) == whole.at_least == 3
    cut = defragment(crowding(free, 23, residents), 5)
    assert cut.fits
    assert 0 < cut.at_least < len(cut.moves)


def brute_force(problem: PackingProblem) -> int | None:
    """The least number of moves, by trying all sets of moves in all orders."""
    rooms = {room.budget.device.id: room for room in problem.memory.rooms}
    opened = [d for d, room in rooms.items() if room.budget.left_out is None]
    host, needs = problem.memory.host, Needs()
    of = {
        each.name: {
            d: need for d in opened if (need := needs.of(each.name, each.fit, rooms[d].budget, d)) is not None
        }
        for each in (problem.model, *problem.residents)
    }

    def run(steps) -> bool:
        free = {d: room.free_bytes for d, room in rooms.items()}
        slots = {d: problem.slots.get(d, 99) for d in rooms}
        ram = host.budget_bytes if host else 1 << 60
        for resident, to in steps:
            need, own_ram = of[resident.name][to], resident.held.get(HOST_ID, 0)
            if free[to] < need.bytes or slots[to] < 1:
                return False
            if ram < need.host_bytes and not (resident.idle and ram + own_ram >= need.host_bytes):
                return False
            free[to] -= need.bytes
            slots[to] -= 1
            ram += own_ram - need.host_bytes
            for d, count in resident.held.items():
                if d in free:
                    free[d] += count
                    slots[d] += 1
        if any(
            free[d] >= need.bytes and slots[d] > 0 and ram >= need.host_bytes for d, need in of["new"].items()
        ):
            return True
        budgets = [
            replace(rooms[d].budget, budget_bytes=max(0, free[d]) if slots[d] > 0 else 0) for d in rooms
        ]
        return isinstance(choose_devices(problem.model.fit, budgets, ()), Placement)

    for count in range(len(problem.residents) + 1):
        for chosen in combinations(problem.residents, count):
            for targets in product(*([to for to in of[r.name] if to not in r.held] for r in chosen)):
                for steps in permutations(zip(chosen, targets, strict=True)):
                    if run(steps):
                        return count
    return None


@st.composite
def crowdings(draw: st.DrawFn) -> PackingProblem:
    cards = draw(st.integers(1, 3))
    numbers = st.integers(0, cards - 1)
    names = "abcd"[: draw(st.integers(0, 4))]
    subset = st.sets(numbers).map(sorted)
    return crowding(
        draw(st.lists(st.integers(-2, 12), min_size=cards, max_size=cards)),
        draw(st.one_of(st.integers(1, 16), st.lists(st.integers(1, 9), min_size=2, max_size=2).map(tuple))),
        {name: (draw(numbers), draw(st.integers(1, 8))) for name in names},
        may={name: draw(subset) for name in names if draw(st.booleans())},
        model_may=draw(st.one_of(st.none(), st.sets(numbers, min_size=1).map(sorted))),
        closed=draw(st.one_of(st.just(()), subset)),
        slots=draw(st.dictionaries(numbers, st.integers(0, 2), max_size=2)),
        busy=[name for name in names if draw(st.booleans())],
        host=draw(
            st.one_of(
                st.none(),
                st.tuples(st.integers(0, 4), st.fixed_dictionaries({n: st.integers(0, 4) for n in names})),
            )
        ),
    )


@settings(max_examples=200, deadline=None)
@given(crowdings())
def test_it_finds_as_few_moves_as_brute_force(problem):
    found, fewest = defragment(problem), brute_force(problem)
    assert found.fits == (fewest is not None)
    if fewest is not None:
        assert len(found.moves) == found.at_least == fewest
