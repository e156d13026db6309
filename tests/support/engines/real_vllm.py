"""A real vLLM on the CPU, as `make test-vllm` installs it, and orders for it."""

import functools
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineOptions
from cotenant.domain.models import Recipe
from cotenant.domain.placements import Budget, Placement
from cotenant.domain.units import GIB
from cotenant.interfaces import EngineOrder
from cotenant.model_files import load_model
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.tensor_parallel import place_tensor_parallel
from tests.support.engines.orders import HOST

_HERE = Path(__file__).resolve().parent

LOADS_WITHIN_S = 300.0
"""It imports PyTorch in three processes, one after another: 20 to 110 s on two cores."""
QUICKLY = ("--enforce-eager", "--dtype", "half")
"""Not to compile; nor to use AMX, as it does for bfloat16, which not every virtual machine lets through."""
ENV = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def program() -> Path:
    """Find the real program that COTENANT_TEST_VLLM names, or skip the test."""
    named = os.environ.get("COTENANT_TEST_VLLM")
    if not named:
        pytest.skip("run by `make test-vllm`, or with a program of vLLM in COTENANT_TEST_VLLM")
    found = Path(named).absolute()
    assert found.exists(), f"COTENANT_TEST_VLLM is {named}, which is not there"
    return found


def models() -> Path:
    """Write the models once per run; return the folder that has `text` and `embedding`."""
    return Path(_models().name)


@functools.cache
def _models() -> tempfile.TemporaryDirectory[str]:
    python = program().with_name("python")
    folder = tempfile.TemporaryDirectory(prefix="cotenant-vllm-")
    subprocess.run([python, _HERE / "write_vllm_models.py", folder.name], check=True, timeout=300)
    return folder


def vllm_order(
    name: str = "text",
    *,
    sleep: int = 0,
    args: tuple[str, ...] = (),
    cache_bytes: int | None = None,
    **recipe: Any,
) -> EngineOrder:
    """An order for a model of `models`, called tiny, planned in host RAM as the daemon plans it.

    `cache_bytes` is the size of its KV cache, None for the planned one.
    """
    path = models() / name
    shape = load_model(path)
    told = Recipe(engine=EngineKind.VLLM, **{"n_ctx": 512, "parallel": 2, **recipe})
    budget = Budget(HOST, 64 * GIB, 64 * GIB)
    placement = place_tensor_parallel("tiny", shape, told, [budget], BudgetRules())
    assert isinstance(placement, Placement)
    if cache_bytes is not None:
        (share,) = placement.shares
        smaller = replace(share, parts=replace(share.parts, kv=cache_bytes))
        placement = replace(placement, shares=(smaller,))
    options = EngineOptions(command=(str(program()),), sleep=sleep)
    return EngineOrder("tiny", path, shape.kind, placement, env=ENV, args=(*QUICKLY, *args), options=options)
