"""Plans for sparse models of real dimensions against what llama.cpp said of the same files."""

import pytest

from cotenant.analysis.footprint import Costs
from cotenant.domain.models import FlashAttention, Parts, Recipe
from cotenant.domain.units import MIB
from tests.support.models.engine_truth import ENGINE_TRUTH, N_CTX, N_UBATCH, Told
from tests.support.models.real_shapes import real_shape

_WHOLE_MIB_BOTH_CUT = 1.0
_COMPUTE_OFF_BY_AT_MOST = 0.3


def costs(name: str, setting: str) -> Costs:
    recipe = Recipe(
        n_ctx=N_CTX,
        n_ubatch=N_UBATCH,
        flash_attention=FlashAttention.ON,
        parallel=1 if setting == "one" else 4,
        kv_unified=setting != "four_split",
    )
    return Costs(real_shape(name), recipe)


@pytest.mark.parametrize("setting", ["one", "four_unified", "four_split"])
@pytest.mark.parametrize("name", ENGINE_TRUTH)
def test_a_plan_is_what_the_engine_will_take(name: str, setting: str) -> None:
    told: Told = getattr(ENGINE_TRUTH[name], setting)
    subject = costs(name, setting)
    device: Parts = subject.parts(0, subject.n_units, many=False)
    host = subject.host(many=False)
    assert device.weights // MIB == told.weights
    assert device.kv // MIB == told.kv
    assert host.weights // MIB == told.host_weights
    if subject.compute_estimated:
        off_by = device.compute / MIB - told.compute
        assert abs(off_by) <= max(_COMPUTE_OFF_BY_AT_MOST * told.compute, 8)
    else:
        assert 0 <= told.compute - device.compute / MIB < _WHOLE_MIB_BOTH_CUT
        assert 0 <= told.host_compute - host.compute / MIB < _WHOLE_MIB_BOTH_CUT
