from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.engines import EngineBuild, ReportedDevice
from cotenant.domain.errors import EngineLoadFailed, EngineLoadTimeout, EngineMissing
from cotenant.domain.models import Parts
from cotenant.domain.units import MIB
from cotenant.engines.llama_cpp.builds import embedded_build, server_build
from cotenant.engines.llama_cpp.rehearsal import rehearse
from tests.support.engines.orders import fake_server, gpu, gpu_order, host_order, with_env
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.models.known_model import real_server

# From a real pass over two RPC devices; the unused third buffer type is what a repacking build adds.
TABLE = """\
0.00.009.955 I llama_prepare_model_devices: using device CUDA0 (NVIDIA A (24 GB)) (0000:01:00.0) - 9 MiB free
0.00.010.285 I llama_prepare_model_devices: using device CUDA1 (NVIDIA B) (0000:02:00.0) - 24105 MiB free
0.00.013.609 I load_tensors:        CUDA0 model buffer size =     0.00 MiB
0.00.013.649 I llama_context: constructing llama_context
0.00.017.668 I sched_reserve:      CUDA0 compute buffer size =   133.29 MiB
0.00.017.669 I sched_reserve:      CUDA1 compute buffer size =   133.54 MiB
0.00.017.669 I sched_reserve:  CUDA_Host compute buffer size =   130.55 MiB
0.00.018.185 I common_memory_breakdown_print: | memory breakdown [MiB] | total   free    self   model   context   compute    unaccounted |
0.00.018.196 I common_memory_breakdown_print: |   - CUDA0 (A (24 GB))  | 24105 = 24105 + ( 231 =  2000 +      96 +     133) +        -231 |
0.00.018.196 I common_memory_breakdown_print: |   - CUDA1 (B)          | 24105 = 24105 + ( 166 =  1000 +      32 +     133) +        -166 |
0.00.018.196 I common_memory_breakdown_print: |   - Host               |                  130 =   280 +       0 +     130                |
0.00.018.196 I common_memory_breakdown_print: |   - CPU_REPACK         |                   40 =    40 +       0 +       0                |
0.00.018.197 I common_params_fit_impl: projected to use 3 MiB of host memory vs. 24105 MiB of total host memory
0.00.018.200 I load_tensors:        CUDA0 model buffer size =  2000.00 MiB
"""  # noqa: E501


@pytest.fixture
def fitting_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineBuild:
    monkeypatch.setenv("FAKE_MORE_HELP", "-fit,  --fit [on|off]   fit the unset arguments")
    return server_build(fake_server(tmp_path))


def test_the_table_is_read_and_the_engine_ended(fitting_server: EngineBuild) -> None:
    order = with_env(gpu_order((20, 0, 13)), FAKE_SAYS=TABLE)
    report = rehearse(fitting_server, order, timeout_s=60)
    assert report.devices == (
        ReportedDevice("CUDA0", gpu(0).pci_bus_id, parts(2000, 96, 133.29)),
        ReportedDevice("CUDA1", gpu(2).pci_bus_id, parts(1000, 32, 133.54)),
        ReportedDevice("CPU", None, parts(320, 0, 130.55), on_host=True),
    )


def test_a_server_that_cannot_fit_cannot_rehearse(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="does not know --fit"):
        rehearse(server_build(fake_server(tmp_path)), host_order(Path("m.gguf")))


def test_a_pass_that_never_ends_is_ended(fitting_server: EngineBuild) -> None:
    with pytest.raises(EngineLoadTimeout, match="did not rehearse tiny in 100 ms"):
        rehearse(fitting_server, host_order(Path("m.gguf")), timeout_s=0.1)


@pytest.mark.engine
@pytest.mark.parametrize("form", ["embedded", "server"])
class TestRealEngine:
    @pytest.fixture
    def build(self, form: str) -> EngineBuild:
        found = embedded_build() if form == "embedded" else server_build(real_server())
        assert found is not None
        return found

    def test_the_rehearsal_is_of_this_recipe(self, build: EngineBuild, tmp_path: Path) -> None:
        model = build_tiny_llama(tmp_path / "tiny.gguf")
        order = host_order(model, n_ctx=65536, parallel=2, kv_unified=False, n_ubatch=256)
        (host,) = rehearse(build, order).devices
        assert host.on_host
        # Two K and V heads of 64 halves in four blocks.
        assert host.parts.kv == 65536 * 2 * 2 * 64 * 2 * 4
        assert host.parts.weights == model.stat().st_size // MIB * MIB
        (smaller,) = rehearse(build, replace(host_order(model, n_ctx=4096))).devices
        assert smaller.parts.compute < host.parts.compute

    def test_a_useless_file_is_explained(self, build: EngineBuild, tmp_path: Path) -> None:
        with pytest.raises(EngineLoadFailed, match="could not be rehearsed: there is no such model file"):
            rehearse(build, host_order(tmp_path / "missing.gguf"))


def parts(weights: float, kv: float, compute: float) -> Parts:
    return Parts(round(weights * MIB), round(kv * MIB), round(compute * MIB))
