"""What vLLM's server is told.

Options as of `vllm serve --help`, 0.11; all are understood since 0.6 but `--enable-sleep-mode` (0.8.3).
"""

from __future__ import annotations

from typing import Final

from cotenant.domain.devices import DeviceKind
from cotenant.domain.engine_terms import VllmTerms
from cotenant.domain.models import CacheType, ModelKind
from cotenant.engines.ports import LOOPBACK
from cotenant.interfaces import EngineOrder
from cotenant.planning.tensor_parallel import utilization

_TASKS: Final = {ModelKind.EMBEDDING: "embed", ModelKind.RERANK: "score"}


def vllm_argv(order: EngineOrder, port: int) -> tuple[str, ...]:
    """Return the arguments of `vllm`, the operator's own last."""
    recipe, shares = order.placement.recipe, order.placement.used_shares
    cards = [share for share in shares if share.device.kind is not DeviceKind.HOST]
    terms = order.terms
    argv = [
        "serve",
        str(order.model_path),
        "--served-model-name",
        order.name,
        "--host",
        LOOPBACK,
        "--port",
        str(port),
        "--max-model-len",
        str(recipe.n_ctx),
        "--max-num-seqs",
        str(recipe.parallel),
        "--max-num-batched-tokens",
        str(max(recipe.n_batch, recipe.parallel)),
        "--tensor-parallel-size",
        str(max(1, len(cards))),
    ]
    fractions = [fraction for share in cards if (fraction := utilization(share)) is not None]
    if fractions:
        argv += ["--gpu-memory-utilization", f"{max(fractions):.4f}"]
    if recipe.cache_type_k is CacheType.Q8_0:
        argv += ["--kv-cache-dtype", "fp8"]
    if order.kind in _TASKS:
        argv += ["--task", _TASKS[order.kind]]
    if isinstance(terms, VllmTerms) and terms.sleep:
        argv.append("--enable-sleep-mode")
    return (*argv, *order.args)


def vllm_environment(terms: VllmTerms) -> dict[str, str]:
    """Return what vLLM needs besides arguments: sleeping is offered in its development mode only."""
    # It listens on the loopback address alone, so that nobody else can put it to sleep.
    return {"VLLM_SERVER_DEV_MODE": "1"} if terms.sleep else {}
