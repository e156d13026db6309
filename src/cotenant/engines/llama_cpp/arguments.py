"""The arguments of llama.cpp, for a llama-server and for the embedded engine."""

from dataclasses import dataclass
from typing import Final

from cotenant.domain.devices import DeviceKind
from cotenant.domain.engines import Adapter
from cotenant.domain.errors import BadRecipe
from cotenant.domain.models import ModelKind, Recipe, SplitMode, check_recipe
from cotenant.domain.placements import MAX_DEVICES, Placement, Share
from cotenant.domain.units import MIB
from cotenant.engines.launch.plan import fit_shares, visible_devices
from cotenant.engines.llama_cpp.host_facts import HostFacts
from cotenant.engines.process.ports import LOOPBACK
from cotenant.interfaces import EngineOrder

PROMPT_CACHE_MIB: Final = 512
"""Host RAM for prompts of idle slots; the engine's default is 8 GiB, which no plan counts."""
MIN_HTTP_THREADS: Final = 64
MAX_HTTP_THREADS: Final = 256
OFFLOADED_THREADS: Final = 4
"""With all layers on GPUs the CPU only fetches embeddings; more threads only take cores from others."""
BUFFER_LINES: Final = 4
"""The log level at which llama.cpp prints what it allocates."""
DEFAULT_MARGIN_MIB: Final = 1024
ALL_DRAFT_LAYERS: Final = 999


@dataclass(frozen=True, slots=True)
class LlamaArguments:
    """One engine's settings, explicit in everything that takes memory.

    `recipe` has the context, the batches and how the KV cache and the weights are kept; the layers, their
    split and its mode are below, as placed. Without `use_gpu` the engine uses no GPU that its build may see.
    `host_tensors` is a pattern of tensors that stay in host RAM, empty for none.
    If `n_gpu_layers` is None, it fits the layers itself and keeps `fit_margins_mib` free on each device.
    A draft is whole on `draft_device`, the engine's name of its first GPU, empty for the only one.
    With `keeps_idle_slots` a slot keeps its cache while others work; else that goes to the cache of prompts.
    In `slot_folder` it saves slots, None if it is to save none. `rpc_servers` lend it GPUs of other machines,
    and `devices` are then the engine's names of all that it uses, in order. `extra` comes last, as written.
    """

    model_path: str
    alias: str
    port: int
    recipe: Recipe
    threads: int
    threads_http: int
    n_gpu_layers: int | None
    tensor_split: tuple[int, ...]
    split_mode: SplitMode
    use_gpu: bool
    repack: bool
    fit: bool
    fit_margins_mib: tuple[int, ...]
    embedding: bool
    host_tensors: str = ""
    rerank: bool = False
    projector_path: str | None = None
    draft_path: str | None = None
    draft_device: str = ""
    adapters: tuple[Adapter, ...] = ()
    control_vectors: tuple[Adapter, ...] = ()
    host: str = LOOPBACK
    prompt_cache_mib: int = PROMPT_CACHE_MIB
    verbosity: int = BUFFER_LINES
    keeps_idle_slots: bool = False
    slot_folder: str | None = None
    rpc_servers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


def expert_pattern(blocks: int) -> str:
    """Return the pattern of the tensors that `--n-cpu-moe` keeps in host RAM (`common/common.h`)."""
    return rf"blk\.({'|'.join(map(str, range(blocks)))})\.ffn_(up|down|gate|gate_up)_(ch|)exps"


def arguments_for(order: EngineOrder, facts: HostFacts, port: int) -> LlamaArguments:
    """Translate an order. Raises BadRecipe for values on which an engine hangs or dies."""
    validate(order)
    placement, recipe = order.placement, order.placement.recipe
    devices = visible_devices(order)
    use_gpu = bool(devices) and placement.n_gpu_layers > 0
    fit = placement.by_engine and use_gpu
    experts = int(recipe.n_cpu_moe) if use_gpu and not fit else 0
    blocks_on_host = not use_gpu or fit or placement.n_gpu_layers <= placement.n_layers or experts > 0
    split = tuple(s.count for s in placement.used_shares if s.device.kind is not DeviceKind.HOST)
    split_mode = recipe.split_mode if fit or (use_gpu and len(devices) > 1) else SplitMode.NONE
    return LlamaArguments(
        model_path=str(order.model_path),
        alias=order.name,
        port=port,
        recipe=recipe,
        threads=facts.cores if blocks_on_host else min(facts.cores, OFFLOADED_THREADS),
        # With fewer, /health waits behind the streams of other clients.
        threads_http=min(max(4 * recipe.parallel, MIN_HTTP_THREADS), MAX_HTTP_THREADS),
        n_gpu_layers=None if fit else placement.n_gpu_layers if use_gpu else 0,
        tensor_split=() if fit or split_mode is SplitMode.NONE else split,
        split_mode=split_mode,
        use_gpu=use_gpu,
        # Some virtual machines advertise AMX, and weights repacked for it kill the engine (SIGILL, SIGSEGV).
        repack=not (facts.has_amx and blocks_on_host),
        fit=fit,
        fit_margins_mib=tuple(_margin_mib(share) for share in fit_shares(placement)) if fit else (),
        host_tensors=expert_pattern(experts) if experts else "",
        embedding=order.kind is ModelKind.EMBEDDING,
        rerank=order.kind is ModelKind.RERANK,
        # The engine empties idle slots also if its cache of prompts has no room for what was in them.
        keeps_idle_slots=_kv_bytes(placement) > PROMPT_CACHE_MIB * MIB,
        projector_path=None if order.projector_path is None else str(order.projector_path),
        draft_path=order.companions.draft,
        adapters=order.companions.adapters,
        control_vectors=order.companions.control_vectors,
        # It would continue what another adapter has computed of the same prompt.
        prompt_cache_mib=0 if order.companions.by_request else PROMPT_CACHE_MIB,
        extra=tuple(order.args),
    )


def validate(order: EngineOrder) -> None:
    """Refuse values on which llama.cpp hangs, dies or never answers. Raises BadRecipe."""
    placement = order.placement
    check_recipe(placement.recipe)
    used = len(visible_devices(order))
    if used > MAX_DEVICES:
        raise BadRecipe(
            f"{order.name} is laid over {used} devices and llama.cpp takes at most {MAX_DEVICES}",
            hint="Name fewer with --devices.",
        )
    if 0 < sum(placement.tensor_split) != placement.n_gpu_layers:
        raise BadRecipe(
            f"the split {placement.tensor_split} sums to {sum(placement.tensor_split)} layers, "
            f"not to the {placement.n_gpu_layers} on GPUs",
            hint="Leave --tensor-split out to have it computed.",
        )


def _margin_mib(share: Share) -> int:
    free, budget = share.budget.free_bytes, share.budget.budget_bytes
    return DEFAULT_MARGIN_MIB if free is None else max(0, free - budget) // MIB


def _kv_bytes(placement: Placement) -> int:
    return placement.host.kv + sum(share.parts.kv for share in placement.used_shares)
