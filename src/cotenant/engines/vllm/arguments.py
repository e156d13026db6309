"""The arguments of vLLM's server, for every release from 0.10.2 to 0.32.

Sources: `engine/arg_utils.py` of 0.10.2, 0.13, 0.16, 0.20 and 0.32. 0.13 removed `--task`, and
0.10.2 added `--kv-cache-memory-bytes`.
"""

import os
from pathlib import Path
from typing import Final

from cotenant.domain.devices import DeviceKind
from cotenant.domain.models import CacheType, ModelKind
from cotenant.engines.process.ports import LOOPBACK
from cotenant.interfaces import EngineOrder
from cotenant.planning.tensor_parallel import batch_tokens, utilization

MIDDLEWARE: Final = Path(__file__).parents[1] / "vllm_middleware"
"""A folder with a module that vLLM imports."""
_CONVERSIONS: Final = {ModelKind.EMBEDDING: "embed", ModelKind.RERANK: "classify"}
"""What a model that generates text is converted to; one that already embeds or ranks stays as it is."""


def vllm_argv(order: EngineOrder, port: int) -> tuple[str, ...]:
    """Return the arguments of `vllm`, the operator's own last."""
    recipe, shares = order.placement.recipe, order.placement.used_shares
    cards = [share for share in shares if share.device.kind is not DeviceKind.HOST]
    options: dict[str, object] = {
        "--served-model-name": order.name,
        "--host": LOOPBACK,
        "--port": port,
        "--max-model-len": recipe.n_ctx,
        "--max-num-seqs": recipe.parallel,
        "--max-num-batched-tokens": batch_tokens(recipe, order.kind),
        "--tensor-parallel-size": max(1, len(cards)),
        "--middleware": "cotenant_key.RequireKey",
    }
    fractions = [fraction for share in shares if (fraction := utilization(share)) is not None]
    if fractions:
        options["--gpu-memory-utilization"] = f"{max(fractions):.4f}"
    cache_bytes = max((share.parts.kv for share in shares), default=0)
    if cache_bytes and "kv" not in order.placement.estimated:
        options["--kv-cache-memory-bytes"] = cache_bytes
    if recipe.cache_type_k is CacheType.Q8_0:
        options["--kv-cache-dtype"] = "fp8"
    if order.kind in _CONVERSIONS:
        options |= {"--runner": "pooling", "--convert": _CONVERSIONS[order.kind]}
    words = (str(word) for option in options.items() for word in option)
    switches = ("--enable-sleep-mode",) if sleep_level(order) else ()
    return ("serve", str(order.model_path), *words, *switches, *order.args)


def sleep_level(order: EngineOrder) -> int:
    """Return the level at which an order's engine sleeps, 0 for never.

    On the CPU vLLM refuses to start with sleep mode (`ModelConfig.__post_init__`), and without it answers
    `/sleep` with success and keeps all of its memory (`CPUWorker.sleep`).
    """
    if any(share.device.kind is DeviceKind.HOST for share in order.placement.used_shares):
        return 0
    return order.options.sleep


def vllm_environment(order: EngineOrder) -> dict[str, str]:
    """Return the environment variables that vLLM needs, with the operator's own."""
    paths = [str(MIDDLEWARE), order.env.get("PYTHONPATH") or ""]
    if order.launch.image is None:
        paths.append(os.environ.get("PYTHONPATH", ""))
    # Since 0.20 its share includes an estimate of the CUDA graphs, which the plan counts separately.
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    variables = {"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "0"}
    if sleep_level(order):
        # It can sleep in its development mode only, whose routes the middleware closes to others.
        variables["VLLM_SERVER_DEV_MODE"] = "1"
    return {**variables, **order.env, **own}
