"""The planner: returns a Placement, or a Refusal with its reason."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Final, TypeAlias

from cotenant.analysis.footprint import Costs
from cotenant.domain.devices import DeviceKind
from cotenant.domain.engine_kinds import PlanMethod
from cotenant.domain.models import (
    FEWEST_EXPERTS,
    MOST_LAYERS,
    FlashAttention,
    ModelShape,
    Parts,
    Projector,
    Recipe,
    SplitMode,
    SplitPolicy,
    check_fit_params,
)
from cotenant.domain.placements import MAX_DEVICES, Budget, Placement, Refusal, Share, Shortfall
from cotenant.domain.units import format_bytes
from cotenant.planning.budgets import BudgetRules, left_out_warnings, overhead_bytes
from cotenant.planning.host_memory import unmapped_bytes
from cotenant.planning.layer_split import SPLITS, Range, SplitProblem, fill, least_fraction, only
from cotenant.planning.machines import place_on_a_machine
from cotenant.planning.manual_split import llama_counts, manual_counts
from cotenant.planning.single_device import lay_out_whole, place_on_one_device, place_without_memory
from cotenant.planning.tensor_parallel import place_tensor_parallel


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A model to place; `projector` is its mmproj, `draft` a model that guesses tokens for it.

    `stated_bytes` is what it takes of one device, stated by the operator or measured, if that cannot be
    computed from its file; None if unknown. It may be `across_nodes` where no machine could hold it
    (`over_machines`).
    """

    name: str
    shape: ModelShape
    recipe: Recipe
    projector: Projector | None = None
    stated_bytes: int | None = None
    draft: ModelShape | None = None
    across_nodes: bool = False


def place(request: PlanRequest, budgets: Sequence[Budget], rules: BudgetRules) -> Placement | Refusal:
    """Place a model on devices of one machine, in their order, or return why it does not fit.

    Host RAM is used as a device only if it is the only one, or if the recipe wants no layer on a GPU. Raises
    BadSplit for a manual split that does not match.
    """
    planning = request.recipe.engine.traits.planning
    if request.recipe.n_cpu_moe and planning is not PlanMethod.PER_LAYER:
        # It may be among the defaults of all models.
        request = replace(request, recipe=replace(request.recipe, n_cpu_moe=0))
    most = takes_what_there_is(request.recipe, request.shape)
    return place_on_a_machine(budgets, lambda those: PLANNERS[planning](request, those, rules), most=most)


def takes_what_there_is(recipe: Recipe, shape: ModelShape) -> bool:
    """Whether more of a model goes to GPUs if they have more room."""
    fewest_experts = recipe.n_cpu_moe == FEWEST_EXPERTS and expert_blocks(shape) > 0
    return recipe.n_gpu_layers == MOST_LAYERS or fewest_experts


def _place_layers(request: PlanRequest, budgets: Sequence[Budget], rules: BudgetRules) -> Placement | Refusal:
    usable = [budget for budget in budgets if budget.left_out is None]
    left_out = left_out_warnings(budgets)
    if not usable:
        reason = f"no device can be used: {_why_left_out(budgets)}" if budgets else "there is no device"
        return Refusal(request.name, reason, warnings=left_out)
    attempt = _Attempt(request, tuple(budgets), rules, left_out)
    gpus = [budget for budget in usable if budget.device.kind is not DeviceKind.HOST]
    if request.recipe.n_gpu_layers == 0 or not gpus:
        return attempt.on_host()
    results = [attempt.on_gpus(group) for group in _groups(gpus)]
    return next((result for result in results if isinstance(result, Placement)), results[0])


Planner: TypeAlias = Callable[[PlanRequest, Sequence[Budget], BudgetRules], Placement | Refusal]

PLANNERS: Final[Mapping[PlanMethod, Planner]] = {
    PlanMethod.PER_LAYER: _place_layers,
    PlanMethod.TENSOR_PARALLEL: lambda request, budgets, rules: place_tensor_parallel(
        request.name, request.shape, request.recipe, budgets, rules
    ),
    PlanMethod.WHOLE: lambda request, budgets, _: place_on_one_device(
        request.name, request.shape, request.recipe, request.stated_bytes, budgets
    ),
    PlanMethod.NONE: lambda request, _, __: place_without_memory(request.name, request.recipe),
}


def _groups(gpus: list[Budget]) -> list[list[Budget]]:
    """Return the sets of devices that one process can use: the cards of a group, or one MIG slice alone.

    CUDA shows a process a single MIG slice (NVIDIA's MIG user guide, CUDA device enumeration), and a client
    of an MPS daemon only the daemon's cards.
    """
    cards: dict[str | None, list[Budget]] = {}
    for budget in gpus:
        if budget.device.kind is not DeviceKind.MIG:
            cards.setdefault(budget.group, []).append(budget)
    slices = [[budget] for budget in gpus if budget.device.kind is DeviceKind.MIG]
    groups = [*(group[:MAX_DEVICES] for group in cards.values()), *slices]
    return sorted(groups, key=lambda group: gpus.index(group[0]))


def _why_left_out(budgets: Sequence[Budget]) -> str:
    """Return why no device can be used, grouped by reason."""
    by_reason: dict[str, list[str]] = {}
    for budget in budgets:
        by_reason.setdefault(budget.left_out or "", []).append(budget.device.label)
    return "; ".join(f"{', '.join(labels)}: {reason}" for reason, labels in by_reason.items())


def leave_to_engine(
    request: PlanRequest, budgets: Sequence[Budget], rules: BudgetRules
) -> Placement | Refusal:
    """Return the most that an engine may take of each device which fits itself to them: all that has room.

    It is refused if not even one layer fits. What the engine made of it is `as_reported`. Only llama.cpp does
    so, on GPUs of this machine; for others it is `place`, with a warning. Raises BadRecipe for a recipe that
    lays itself out.
    """
    recipe = request.recipe
    if recipe.engine.traits.planning is not PlanMethod.PER_LAYER:
        return place(request, budgets, rules)
    check_fit_params(recipe)
    recipe = replace(recipe, n_cpu_moe=0)
    usable = [b for b in budgets if b.left_out is None and b.device.kind is not DeviceKind.HOST]
    if any(budget.device.described for budget in usable) or not usable:
        planned = place(request, budgets, rules)
        return replace(planned, warnings=(*planned.warnings, _NOTHING_TO_FIT))
    within = place(replace(request, recipe=replace(recipe, n_gpu_layers=MOST_LAYERS)), budgets, rules)
    if isinstance(within, Refusal):
        return within
    used = within.used_shares[0].budget
    budgets = [budget for budget in budgets if budget.device.node == within.node]
    usable = next(group for group in _groups([b for b in usable if b in budgets]) if used in group)
    costs = Costs(request.shape, recipe, projector=request.projector, draft=request.draft)
    whole, most = costs.parts(0, costs.n_units, many=len(usable) > 1), {}
    for budget in usable:
        overhead = overhead_bytes(budget.device, rules, recipe.engine)
        if budget.device.unified:
            overhead += unmapped_bytes(within.host, recipe)
        part = min(1.0, (budget.budget_bytes - overhead) / whole.total)
        if part > 0:
            sizes = (int(part * size) for size in (whole.weights, whole.kv, whole.compute))
            most[budget.device.id] = Parts(*sizes) + Parts(overhead=overhead)
    seen = tuple(
        budget
        if budget.left_out is not None or budget.device.id in most
        else replace(budget, budget_bytes=0, left_out="a process cannot use it together with the others")
        for budget in budgets
    )
    warnings = (*within.warnings, _FITS_ITSELF)
    estimated = ("weights", "kv", "compute")
    placed = lay_out_whole(request.name, request.shape, recipe, seen, most, estimated, warnings)
    return replace(placed, host=within.host, by_engine=True)


def expert_blocks(shape: ModelShape) -> int:
    """Return up to which block a model has experts that can stay in host RAM; 0 if it has none."""
    return max((layer.index + 1 for layer in shape.layers if layer.expert_bytes), default=0)


_NO_ROWS: Final = "llama.cpp's current CUDA builds refuse to split rows over GPUs"
_NOTHING_TO_FIT: Final = "--use-fit-params has no effect: llama.cpp fits itself only to GPUs of this machine"
_FITS_ITSELF: Final = (
    "layers and split are left to llama.cpp: each GPU's bytes are the most that it may take, and what it "
    "reports replaces them once it is loaded"
)


@dataclass(frozen=True, slots=True)
class _Attempt:
    request: PlanRequest
    budgets: tuple[Budget, ...]
    rules: BudgetRules
    left_out: tuple[str, ...]

    def on_host(self) -> Placement | Refusal:
        """Place everything in host RAM; GPUs are listed as unused."""
        costs = self._costs(self.request.shape.n_layers + 1)
        parts = costs.all_on_host()
        host = next((b for b in self.budgets if b.device.kind is DeviceKind.HOST), None)
        last = self.request.shape.n_layers - 1
        shares = tuple(
            Share(b, 0, last, 0, has_output=True, parts=parts) if b is host else Share.unused(b)
            for b in self.budgets
        )
        if host is not None and parts.total > host.budget_bytes:
            reason = (
                f"it needs {format_bytes(parts.total)} of host RAM and {format_bytes(host.budget_bytes)} "
                "may be used"
            )
            shortfall = Shortfall(host.device, parts.total, host.budget_bytes)
            return Refusal(self.request.name, reason, (shortfall,), warnings=self._warnings(costs))
        return self._placement(costs, shares, 0, host=Parts() if host else parts)

    def on_gpus(self, usable: list[Budget]) -> Placement | Refusal:
        """Place on GPUs as many layers and experts as the recipe wants, or as fit: layers before experts."""
        wanted, most = self.request.recipe.n_cpu_moe, expert_blocks(self.request.shape)
        if isinstance(wanted, int):
            return self._layers_on_gpus(usable, min(wanted, most))

        def attempt(experts: int) -> Placement | Refusal:
            return self._layers_on_gpus(usable, experts, fewer=False)

        def fits(experts: int) -> bool:
            return isinstance(attempt(experts), Placement)

        if most == 0 or not fits(most):
            return self._layers_on_gpus(usable, most)
        # The experts of one block more take more from the GPUs than is needed there to compute with them.
        return attempt(0 if fits(0) else 1 + bisect_left(range(1, most), True, key=fits))

    def _layers_on_gpus(
        self, usable: list[Budget], experts: int, *, fewer: bool = True
    ) -> Placement | Refusal:
        """Place layers with the experts of so many blocks in host RAM; fewer layers if the recipe lets it."""
        n_units = self.request.shape.n_layers + 1
        recipe, wanted = self.request.recipe, self.request.recipe.n_gpu_layers
        begin = 0 if isinstance(wanted, str) else n_units - min(wanted, n_units)
        spreads = recipe.split_mode is SplitMode.LAYER
        if spreads and (recipe.tensor_split or not recipe.smart_split):
            return self._by_proportion(usable, self._costs(begin, experts))
        for first in range(n_units) if wanted == MOST_LAYERS and fewer else (begin,):
            costs = self._costs(first, experts)
            problem, warning = self._problem(usable, costs)
            ranges = self._ranges(problem)
            if ranges is not None:
                return self._laid_out(usable, costs, ranges, *warning)
        return self._refusal(usable, problem)

    def _by_proportion(self, usable: list[Budget], costs: Costs) -> Placement | Refusal:
        layers, by_hand = costs.n_units - costs.begin, self.request.recipe.tensor_split
        if by_hand:
            counts = manual_counts(by_hand, len(usable), layers)
        else:
            counts = llama_counts([budget.budget_bytes for budget in usable], layers)
        ranges = tuple(pairwise(accumulate(counts, initial=costs.begin)))
        placement = self._laid_out(usable, costs, ranges)
        shortfalls = _shortfalls(placement)
        if any(shortfall.missing_bytes for shortfall in shortfalls):
            which = "given by hand" if by_hand else "in proportion to free memory"
            overfull = ", ".join(
                f"{s.device.label} by {format_bytes(s.missing_bytes)}" for s in shortfalls if s.missing_bytes
            )
            reason = f"the split {which} overfills {overfull}"
            return Refusal(self.request.name, reason, shortfalls, warnings=placement.warnings)
        return placement

    def _costs(self, begin: int, experts: int = 0) -> Costs:
        request, recipe = self.request, replace(self.request.recipe, n_cpu_moe=experts)
        return Costs(request.shape, recipe, begin=begin, projector=request.projector, draft=request.draft)

    def _problem(self, usable: list[Budget], costs: Costs) -> tuple[SplitProblem, tuple[str, ...]]:
        budgets = tuple(b.budget_bytes - self._overhead(b, costs) for b in usable)
        bandwidths = tuple(float(b.device.bandwidth_bytes_per_s or 0) for b in usable)
        problem = SplitProblem(costs, budgets, bandwidths)
        unknown = ", ".join(b.device.label for b in usable if not b.device.bandwidth_bytes_per_s)
        if self.request.recipe.split_policy is not SplitPolicy.SPEED or not unknown:
            return problem, ()
        return problem, (f"split policy speed needs the bandwidth of {unknown}, not known: fill was used",)

    def _ranges(self, problem: SplitProblem) -> tuple[Range, ...] | None:
        if self.request.recipe.split_mode is not SplitMode.LAYER:
            devices = range(len(problem.budgets))
            fitting = (d for d in devices if problem.furthest(d, problem.begin, many=False) == problem.end)
            device = next(fitting, None)
            return None if device is None else only(problem, device)
        policy = self.request.recipe.split_policy
        filled = fill(problem)
        if filled is None or policy is SplitPolicy.FILL:
            return filled
        # Without all bandwidths the speed is unknown.
        return (
            filled if policy is SplitPolicy.SPEED and not all(problem.bandwidths) else SPLITS[policy](problem)
        )

    def _refusal(self, usable: list[Budget], problem: SplitProblem) -> Refusal:
        if (mode := self.request.recipe.split_mode) is not SplitMode.LAYER:
            alone = problem.costs.total(problem.begin, problem.end, False)
            single = [
                Shortfall(b.device, alone + self._overhead(b, problem.costs), b.budget_bytes) for b in usable
            ]
            least = min(single, key=lambda shortfall: shortfall.missing_bytes)
            rows = f", since {_NO_ROWS}" if mode is SplitMode.ROW else ""
            reason = (
                f"with --split-mode {mode} it needs {format_bytes(least.needed_bytes)} on one GPU{rows}, and "
                f"{format_bytes(least.budget_bytes)} may be used of {least.device.label}"
            )
            warnings = self._warnings(problem.costs)
            return Refusal(self.request.name, reason, tuple(single), warnings=warnings)
        _, ranges = least_fraction(problem)
        shortfalls = _shortfalls(self._laid_out(usable, problem.costs, ranges))
        needed = sum(shortfall.needed_bytes for shortfall in shortfalls)
        available = sum(budget.budget_bytes for budget in usable)
        reason = f"it needs {format_bytes(needed)} and {format_bytes(available)} may be used"
        if problem.costs.experts_of:
            reason += f", with the experts of {problem.costs.experts_of} blocks in host RAM"
        if needed <= available:
            reason += ", but no layer boundary divides it so that every device's part fits"
        return Refusal(self.request.name, reason, shortfalls, warnings=self._warnings(problem.costs))

    def _laid_out(
        self, usable: list[Budget], costs: Costs, ranges: tuple[Range, ...], *warnings: str
    ) -> Placement:
        many = sum(stop > start for start, stop in ranges) > 1
        by_device = {budget.device.id: units for budget, units in zip(usable, ranges, strict=True)}
        shares = tuple(self._share(b, costs, *by_device.get(b.device.id, (0, 0)), many) for b in self.budgets)
        placement = self._placement(costs, shares, costs.n_units - costs.begin, host=costs.host(many=many))
        return placement.with_warnings(*warnings) if warnings else placement

    def _share(self, budget: Budget, costs: Costs, start: int, stop: int, many: bool) -> Share:
        if start == stop:
            return Share.unused(budget)
        n_layers = self.request.shape.n_layers
        holds_blocks = start < n_layers
        return Share(
            budget,
            first=start if holds_blocks else None,
            last=min(stop, n_layers) - 1 if holds_blocks else None,
            count=stop - start,
            has_output=stop == costs.n_units,
            parts=costs.parts(start, stop, many=many, overhead_bytes=self._overhead(budget, costs)),
        )

    def _overhead(self, budget: Budget, costs: Costs) -> int:
        """Return what a device bears besides layers; of a unified one, all that stays in host RAM, too."""
        own = overhead_bytes(budget.device, self.rules, self.request.recipe.engine)
        if budget.device.unified:
            own += unmapped_bytes(costs.host(many=False), self.request.recipe)
            # Every token reads experts: they take as much of the pool wherever they are, mapped or not.
            own += costs.hosted_experts if self.request.recipe.mmap and not self.request.recipe.mlock else 0
        return own

    def _placement(
        self, costs: Costs, shares: tuple[Share, ...], n_gpu_layers: int, host: Parts
    ) -> Placement:
        estimated = [] if self.request.shape.kv_exact else ["kv"]
        if costs.compute_estimated or n_gpu_layers == 0:
            estimated.append("compute")
        return Placement(
            model=self.request.name,
            recipe=replace(self.request.recipe, n_gpu_layers=n_gpu_layers, n_cpu_moe=costs.experts_of),
            n_layers=self.request.shape.n_layers,
            n_gpu_layers=n_gpu_layers,
            shares=shares,
            host=host,
            estimated=tuple(estimated),
            warnings=self._warnings(costs),
        )

    def _warnings(self, costs: Costs) -> tuple[str, ...]:
        shape, recipe = self.request.shape, self.request.recipe
        warnings = [*self.left_out, *shape.notes]
        per_request = costs.geometry.cells
        if shape.n_ctx_train and per_request > shape.n_ctx_train:
            warnings.append(
                f"a context of {per_request:,} tokens is more than the {shape.n_ctx_train:,} "
                "that the model was trained for"
            )
        if costs.geometry.n_ctx != recipe.n_ctx:
            warnings.append(f"the engine rounds the context to {costs.geometry.n_ctx:,} tokens")
        if isinstance(recipe.n_cpu_moe, int) and recipe.n_cpu_moe and not expert_blocks(shape):
            warnings.append("n_cpu_moe has no effect: the model is no mixture of experts")
        if recipe.split_mode is SplitMode.ROW:
            warnings.append(f"it is planned on one GPU, since {_NO_ROWS}")
        if recipe.flash_attention is FlashAttention.AUTO and recipe.cache_type_v.quantised:
            warnings.append("a quantised V cache needs flash attention: the engine refuses where it has none")
        return tuple(warnings)


def _shortfalls(placement: Placement) -> tuple[Shortfall, ...]:
    return tuple(
        Shortfall(share.device, share.parts.total, share.budget.budget_bytes)
        for share in placement.used_shares
    )
