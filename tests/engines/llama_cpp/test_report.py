from cotenant.domain.engines import EngineReport, ReportedDevice
from cotenant.domain.models import Parts
from cotenant.domain.units import MIB
from cotenant.engines.llama_cpp.report import missing_devices, parse_report, without_lent
from tests.support.engines.orders import gpu

# Cut from real loads of llama-server 0.5.0-dev: two RPC devices stand for GPUs.
TWO_DEVICES = """\
0.00.031.601 I llama_prepare_model_devices: using device RPC0 (127.0.0.1:50071) (unknown id) - 24105 MiB free
0.00.031.935 I llama_prepare_model_devices: using device RPC1 (127.0.0.1:50072) (unknown id) - 24105 MiB free
0.00.036.753 I load_tensors:   CPU_Mapped model buffer size =     0.12 MiB
0.00.036.769 I load_tensors: RPC0[127.0.0.1:50071] model buffer size =     0.52 MiB
0.00.036.784 I load_tensors: RPC0[127.0.0.1:50072] model buffer size =     0.47 MiB
0.00.042.665 I llama_context: constructing llama_context
0.00.042.682 I llama_context:        CPU  output buffer size =     0.01 MiB
0.00.042.971 I llama_kv_cache: RPC0[127.0.0.1:50071] KV buffer size =     0.19 MiB
0.00.043.614 I llama_kv_cache: RPC0[127.0.0.1:50072] KV buffer size =     0.12 MiB
0.00.049.271 I sched_reserve: RPC0[127.0.0.1:50071] compute buffer size =     2.92 MiB
0.00.049.295 I sched_reserve: RPC0[127.0.0.1:50072] compute buffer size =     2.80 MiB
0.00.049.309 I sched_reserve:        CPU compute buffer size =     1.67 MiB
"""
# The same lines as a CUDA build writes them, with the two caches of a sliding-window model.
CUDA = """\
0.10 I llama_prepare_model_devices: using device CUDA0 (NVIDIA RTX A (24 GB)) (0000:01:00.0) - 24105 MiB free
0.11 I load_tensors:   CPU_Mapped model buffer size =   280.00 MiB
0.11 I load_tensors:        CUDA0 model buffer size =  4000.00 MiB
0.11 I load_tensors:    CUDA_Host model buffer size =    20.00 MiB
0.11 I load_tensors:   CPU_REPACK model buffer size =    30.00 MiB
0.12 I llama_context: constructing llama_context
0.12 I llama_context:  CUDA_Host  output buffer size =     0.50 MiB
0.12 I llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB
0.12 I llama_kv_cache:      CUDA0 KV buffer size =    25.50 MiB
0.12 I llama_memory_recurrent:      CUDA0 RS buffer size =     4.25 MiB
0.13 I sched_reserve:      CUDA0 compute buffer size =   900.00 MiB
0.13 I sched_reserve:  CUDA_Host compute buffer size =    12.00 MiB
0.14 I sched_reserve:      CUDA0 compute buffer size =   120.00 MiB
0.14 I sched_reserve:  CUDA_Host compute buffer size =    10.00 MiB
"""
PROJECTOR = """\
0.20 I clip_ctx: CLIP using CUDA0 backend
0.20 I load_hparams: model size:         800.00 MiB
0.21 I alloc_compute_meta:      CUDA0 compute buffer size =    50.00 MiB
"""


def mib(weights: float, kv: float, compute: float) -> Parts:
    return Parts(round(weights * MIB), round(kv * MIB), round(compute * MIB))


def parsed(log: str) -> EngineReport:
    report = parse_report(log.splitlines())
    assert report is not None
    return report


def test_buffers_are_added_up_per_device() -> None:
    assert parsed(TWO_DEVICES).devices == (
        ReportedDevice("RPC0", None, mib(0.52, 0.19, 2.92)),
        ReportedDevice("RPC1", None, mib(0.47, 0.12, 2.80)),
        ReportedDevice("CPU", None, mib(0.12, 0, 1.67), on_host=True),
    )


def test_pinned_mapped_and_repacked_memory_is_the_hosts() -> None:
    card, host = parsed(CUDA).devices
    assert (card.name, card.pci_bus_id) == ("CUDA0", "0000:01:00.0")
    assert host.on_host
    assert host.parts == mib(330, 0, 10)


def test_caches_and_states_are_summed_and_a_second_reservation_replaces_the_first() -> None:
    assert parsed(CUDA).devices[0].parts == mib(4000, 129.75, 120)


def test_a_projector_is_counted_where_it_lies() -> None:
    assert parsed(CUDA + PROJECTOR).devices[0].parts == mib(4800, 129.75, 170)


def test_two_encoders_of_a_projector_have_a_buffer_each() -> None:
    assert parsed(CUDA + PROJECTOR + PROJECTOR).devices[0].parts == mib(5600, 129.75, 220)


def test_a_log_without_buffer_lines_is_no_report() -> None:
    assert parse_report(["0.00.1 I srv init: fine"]) is None


def test_planned_gpus_that_the_engine_did_not_find_are_named() -> None:
    assert missing_devices([gpu(0)], parsed(CUDA)) == ()
    assert missing_devices([gpu(0), gpu(1)], parsed(CUDA)) == (gpu(1),)
    assert missing_devices([gpu(3)], parsed(CUDA)) == (gpu(3),)


def test_without_pci_ids_gpus_are_counted() -> None:
    assert missing_devices([gpu(0), gpu(1)], parsed(TWO_DEVICES)) == ()
    assert missing_devices([gpu(0), gpu(1), gpu(2)], parsed(TWO_DEVICES)) == (gpu(2),)


def test_gpus_that_one_server_lends_are_told_apart_by_their_numbers() -> None:
    address = "127.0.0.1:50071"
    report = parse_report(
        [
            "using device CUDA0 (NVIDIA RTX A) (0000:01:00.0) - 24105 MiB free",
            f"using device RPC0 ({address}) (unknown id) - 24105 MiB free",
            f"using device RPC1 ({address}) (unknown id) - 24105 MiB free",
            "load_tensors: CUDA0 model buffer size = 30.00 MiB",
            f"load_tensors: RPC0[{address}] model buffer size = 20.00 MiB",
            f"load_tensors: RPC1[{address}] model buffer size = 10.00 MiB",
        ]
    )
    assert report is not None
    found = {device.name: device.parts.weights // MIB for device in report.devices}
    assert found == {"CUDA0": 30, "RPC0": 20, "RPC1": 10, "CPU": 0}
    own = without_lent(report)
    assert missing_devices([gpu(0), gpu(1)], own) == (gpu(1),), "what others lend is not one of its own"
