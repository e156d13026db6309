"""One model over the GPUs of several machines."""

from dataclasses import replace
from itertools import groupby

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cotenant.domain.devices import DeviceKind
from cotenant.domain.models import Recipe, SplitPolicy
from cotenant.domain.placements import Budget, Placement, Refusal
from cotenant.domain.units import GIB, MIB
from cotenant.planning.advice import plan
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.over_machines import fits_no_machine, link_bytes, place_over_machines
from cotenant.planning.planner import PlanRequest, place
from tests.planning.test_machines import BIG, on
from tests.support.models.shapes import shapes

RULES = BudgetRules(overhead_bytes=20 * MIB)
REQUEST = PlanRequest("m", BIG, Recipe(), across_nodes=True)


def placed(*budgets: Budget, request: PlanRequest = REQUEST) -> Placement:
    found = place_over_machines(request, budgets, RULES)
    assert isinstance(found, Placement), found.reason
    return found


def test_it_is_over_as_few_machines_as_hold_it_and_the_one_that_bears_most_runs_it() -> None:
    found = placed(on("a", 0, 3 * GIB), on("b", 0, 6 * GIB), on("c", 0, 9 * GIB))
    assert found.nodes == ("c", "b")
    assert sum(found.tensor_split) == found.n_gpu_layers == BIG.n_layers + 1
    assert found.link_bytes == link_bytes(BIG, 2) == 4 * (BIG.n_embd + BIG.n_vocab)
    assert found.warnings[-1].startswith("it fits no machine alone: over 2 of them it is slow, and")
    three = placed(on("a", 0, 6 * GIB), on("b", 0, 6 * GIB), on("c", 0, 5 * GIB))
    assert three.nodes == ("a", "b", "c")
    assert three.link_bytes == 4 * (3 * BIG.n_embd + BIG.n_vocab)


def test_the_machine_that_bears_most_comes_first_also_if_another_one_has_more_cards() -> None:
    found = placed(*(on("a", index, 4 * GIB) for index in range(3)), on("b", 0, 11 * GIB))
    assert found.nodes[0] == "b"


def test_each_machine_gives_the_cards_that_one_process_can_use_and_no_mig_slice() -> None:
    shared = replace(on("a", 0, 2 * GIB), group="a/mps0")
    a_slice = on("b", 1, 9 * GIB)
    a_slice = replace(a_slice, device=replace(a_slice.device, kind=DeviceKind.MIG))
    found = placed(shared, on("a", 1, 8 * GIB), on("b", 0, 7 * GIB), a_slice)
    assert [share.device.id for share in found.used_shares] == ["GPU-a1", "GPU-b0"]


def test_what_does_not_fit_over_all_machines_is_refused_with_both_numbers() -> None:
    refusal = place_over_machines(REQUEST, [on("a", 0, 4 * GIB), on("b", 0, 4 * GIB)], RULES)
    assert isinstance(refusal, Refusal)
    assert refusal.reason.startswith("of 2 machines a is nearest: it needs")
    assert "; over 2 machines it needs" in refusal.reason
    assert len(refusal.shortfalls) == 2


def test_a_plan_is_over_machines_only_if_it_may_be_and_no_machine_could_hold_it_empty() -> None:
    tight = [on("a", 0, 8 * GIB), on("b", 0, 8 * GIB)]
    assert isinstance(plan(REQUEST, tight, RULES), Placement)
    assert isinstance(plan(replace(REQUEST, across_nodes=False), tight, RULES), Refusal)
    larger = replace(tight[0], device=replace(tight[0].device, total_bytes=24 * GIB))
    assert fits_no_machine(REQUEST, tight, RULES)
    assert not fits_no_machine(REQUEST, [larger, tight[1]], RULES)
    assert isinstance(plan(REQUEST, [larger, tight[1]], RULES), Refusal), "a is only taken by others"


@settings(max_examples=80, deadline=None)
@given(
    shapes(),
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 300)), min_size=2, max_size=8),
    st.sampled_from([*SplitPolicy]),
)
def test_no_device_is_overfilled_and_each_machine_has_one_range_of_layers(
    shape: object, sizes: list[tuple[str, int]], policy: SplitPolicy
) -> None:
    budgets = [on(node, index, size * MIB) for index, (node, size) in enumerate(sizes)]
    request = PlanRequest("m", shape, Recipe(n_ctx=256, split_policy=policy), across_nodes=True)  # type: ignore[arg-type]
    found = place_over_machines(request, budgets, RULES)
    assume(isinstance(found, Placement))
    assert isinstance(found, Placement)
    assert found == place_over_machines(request, budgets, RULES)
    shares = found.used_shares
    assert all(share.parts.total <= share.budget.budget_bytes for share in shares)
    assert [node for node, _ in groupby(share.device.node for share in shares)] == [*found.nodes]
    assert sum(share.count for share in shares) == found.n_layers + 1
    if len(found.nodes) == 1:
        assert found.link_bytes is None
        assert found == place(request, budgets, RULES)
    else:
        assert isinstance(place(request, budgets, RULES), Refusal)
        parts = [found.on(node) for node in found.nodes]
        assert sum(len(part.used_shares) for part in parts) == len(shares)
        assert sum(part.host.total for part in parts) == found.host.total


def test_a_machine_that_only_lends_its_gpus_never_runs_the_model() -> None:
    lends = replace(on("a", 0, 9 * GIB), lends_only="it has no file")
    found = placed(lends, on("b", 0, 6 * GIB))
    assert found.nodes == ("b", "a")
    refusal = place_over_machines(REQUEST, [lends, replace(lends, device=on("b", 0, 1).device)], RULES)
    assert isinstance(refusal, Refusal)
    assert "it has no file" in refusal.reason
    whole = replace(on("a", 0, 90 * GIB), lends_only="it has no file")
    for others in ([], [on("b", 0, 2 * GIB)]):
        alone = place_over_machines(REQUEST, [whole, *others], RULES)
        assert isinstance(alone, Refusal), "it has the room for all of it, and cannot run it"
