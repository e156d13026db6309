"""How fast a placement may generate, by the bandwidth of the memory that holds its weights."""

from dataclasses import replace
from typing import Final

from cotenant.analysis.footprint import Costs
from cotenant.domain.models import ModelShape
from cotenant.domain.placements import Placement

HOST_BYTES_PER_S: Final = 51_200_000_000
"""Assumed of host RAM: two channels of DDR4-3200, or one of DDR5-6400."""


def most_tokens_per_s(shape: ModelShape, placement: Placement) -> float:
    """Return an upper bound of the tokens per second of one request with a short context.

    Each token reads every active weight once, device after device, and cannot be faster than these reads:
    Pope et al., "Efficiently Scaling Transformer Inference" (2022), section 2, at batch size 1. Of the
    experts those are read that one token uses. GPUs whose bandwidth is unknown count as infinitely fast.
    """
    begin = shape.n_layers + 1 - placement.n_gpu_layers
    costs = Costs(shape, replace(placement.recipe, n_ctx=1, parallel=1), begin=begin)
    seconds = costs.read_on_host() / HOST_BYTES_PER_S
    for share in placement.used_shares:
        if bandwidth := share.device.bandwidth_bytes_per_s:
            seconds += costs.read_bytes(begin, begin + share.count) / bandwidth
        begin += share.count
    return 1 / seconds
