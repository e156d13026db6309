"""The placement of a model, or the reason why there is none; and how to ask for it without loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

from cotenant.domain.devices import Device, DeviceKind
from cotenant.domain.engines import ALONE, Companions
from cotenant.domain.models import ModelShape, Parts, Projector, Recipe
from cotenant.domain.nodes import LoadCost
from cotenant.domain.units import format_bytes

MAX_DEVICES: Final = 15
"""`--tensor-split` takes one value fewer than llama.cpp's `llama_max_devices`, 16 (`common/arg.cpp`)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A device and the bytes that may be planned on it: worst-case free less the reserve.

    `left_out` says why the device is not used, `lends_only` why it is used only for an engine that runs on
    another machine. A process can use devices of one `group` together: those of an
    MPS daemon, or (None) all that are used without one.
    """

    device: Device
    free_bytes: int | None
    budget_bytes: int
    left_out: str | None = None
    group: str | None = None
    lends_only: str | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a model on one device.

    `first` and `last` are block numbers, inclusive, or None when the device holds no block. `count` is its
    entry of the tensor split: its blocks, plus one where the output layer is. `proportion` replaces `count`
    in the engine's arguments if the operator gave one.
    """

    budget: Budget
    first: int | None
    last: int | None
    count: int
    has_output: bool
    parts: Parts

    @classmethod
    def unused(cls, budget: Budget) -> Self:
        """Return the share of a device that holds nothing of a model."""
        return cls(budget, None, None, 0, has_output=False, parts=Parts())

    @property
    def device(self) -> Device:
        """The device of this share."""
        return self.budget.device

    @property
    def used(self) -> bool:
        """Whether anything of the model is on this device."""
        return self.count > 0 or self.first is not None


@dataclass(frozen=True, slots=True)
class Placement:
    """A model placed on devices, in planned order, with its recipe resolved to numbers.

    `n_gpu_layers` counts as llama.cpp does; `host` is what stays in RAM besides the devices' shares.
    `by_engine`: the engine lays itself out; each share is the most that it may take, or what it reports.
    One over several machines says how many bytes cross the network for each token that it generates
    (`link_bytes`); the first machine bears the most of it, and whatever is in host RAM.
    """

    model: str
    recipe: Recipe
    n_layers: int
    n_gpu_layers: int
    shares: tuple[Share, ...]
    host: Parts
    estimated: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    by_engine: bool = False
    link_bytes: int | None = None

    @property
    def used_shares(self) -> tuple[Share, ...]:
        """The shares that are not empty; the engine sees only these devices."""
        return tuple(share for share in self.shares if share.used)

    @property
    def node(self) -> str | None:
        """The machine that runs the model; None for this one if there are no others."""
        return self.nodes[0]

    @property
    def nodes(self) -> tuple[str | None, ...]:
        """The machines that bear a part of the model: mostly one."""
        shares = self.used_shares or self.shares[:1]
        return tuple(dict.fromkeys(share.device.node for share in shares)) or (None,)

    def on(self, node: str | None) -> Placement:
        """Return the part of the model on one machine's devices; the rest of it counts as in no memory."""
        shares = tuple(share for share in self.shares if share.device.node == node)
        return replace(self, shares=shares, host=self.host if node == self.node else Parts())

    @property
    def link_text(self) -> str:
        """Say as a clause that it is over several machines, and what that costs; empty on one."""
        if self.link_bytes is None:
            return ""
        return (
            f"it fits no machine alone: over {len(self.nodes)} of them it is slow, and "
            f"{format_bytes(self.link_bytes)} cross the network for each token"
        )

    @property
    def tensor_split(self) -> tuple[int, ...]:
        """Layers per device, in planned order; sums to `n_gpu_layers`. Empty if it is the engine's."""
        return () if self.by_engine else tuple(share.count for share in self.shares)

    @property
    def on_gpu(self) -> bool:
        """Whether any used device is not host RAM."""
        return any(share.device.kind is not DeviceKind.HOST for share in self.used_shares)

    @property
    def label(self) -> str:
        """Name the devices that bear the model for people."""
        ram = "host RAM" if self.node is None else f"{self.node} host RAM"
        return ", ".join(share.device.label for share in self.used_shares) or ram

    @property
    def all_on_gpus(self) -> bool:
        """Whether every layer is on a GPU, the output layer and all experts, too."""
        return self.n_gpu_layers > self.n_layers and not self.recipe.n_cpu_moe

    def with_warnings(self, *more: str) -> Placement:
        """Return the same placement with warnings added."""
        return replace(self, warnings=(*self.warnings, *more))


@dataclass(frozen=True, slots=True)
class Shortfall:
    """The bytes that a plan needs on one device, and its budget."""

    device: Device
    needed_bytes: int
    budget_bytes: int

    @property
    def missing_bytes(self) -> int:
        """Bytes over the budget, 0 if the plan fits."""
        return max(0, self.needed_bytes - self.budget_bytes)


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change after which the model fits, checked by planning it; `flags` is what to type."""

    text: str
    flags: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model cannot be placed: the reason, the shortfall per device and what would fit."""

    model: str
    reason: str
    shortfalls: tuple[Shortfall, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanQuery:
    """What to plan, and on what, without loading it.

    The model is a served one (`model`), a file (`path`), or what `shape` states for a file named `name`, with
    a `projector`. `recipe` are the fields of a Recipe that replace the model's own or, if
    it has none, the configured ones. `gpus` describes GPUs that replace the detected ones. `beside_loaded`
    counts the memory of Cotenant's models as taken; otherwise they may be evicted. Bytes that are None are
    the configured ones.
    """

    model: str | None = None
    path: str | None = None
    shape: ModelShape | None = None
    name: str = ""
    projector: Projector | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)
    gpus: str | None = None
    beside_loaded: bool = False
    reserve_bytes: int | None = None
    min_budget_bytes: int | None = None
    overhead_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """The plan of a model: the result for `budgets`, in planned order, with its inputs.

    `recipe` is the planned one, before layers became a number. `path` is None if the file is elsewhere.
    `gpus` is what was requested; `described_as` also names GPUs that the daemon was started with. A model
    `without_projector` has one beside its file; `by_engine` leaves the layout to the engine. `load_costs` are
    how soon it loads on each machine that has reported its files.
    """

    name: str
    path: str | None
    shape: ModelShape
    recipe: Recipe
    budgets: tuple[Budget, ...]
    result: Placement | Refusal
    reserve_bytes: int
    min_budget_bytes: int
    overhead_bytes: int
    projector_path: str | None = None
    gpus: str | None = None
    described_as: str | None = None
    problems: tuple[str, ...] = ()
    without_projector: bool = False
    by_engine: bool = False
    companions: Companions = ALONE
    load_costs: Mapping[str, LoadCost] = field(default_factory=dict)
