"""Signatures: patterns in a log that show why an engine ended, the most certain first.

They match messages of llama.cpp, Ollama, vLLM, PyTorch, CUDA, the NVIDIA driver, podman and docker; real
excerpts, each with its source, are in `tests/engines/diagnosis/logs`. If one log may match two signatures,
the one nearer to the cause comes first. A line such as `failed to load model` is not a signature. A signature
is weak if an engine may print it and continue: a CUDA build that runs on the CPU reports that it found no
card.

No pattern spans lines, and lines are cut before the search, so a search takes linear time.
"""

import re
from dataclasses import dataclass
from typing import Final

from cotenant.domain.exit_causes import Cause


@dataclass(frozen=True, slots=True)
class Signature:
    """A pattern that shows a cause; `{0}` and so on in the summary are the groups of the pattern."""

    cause: Cause
    pattern: re.Pattern[str]
    summary: str


def signatures(*rows: tuple[Cause, str, str]) -> tuple[Signature, ...]:
    """Compile rows of a cause, a pattern and a summary."""
    return tuple(
        Signature(cause, re.compile(pattern, re.MULTILINE), summary) for cause, pattern, summary in rows
    )


_GPU_MEMORY: Final = Cause.GPU_MEMORY_LOADING

STRONG: Final = signatures(
    # The hardware.
    (
        Cause.HARDWARE_FAULT,
        r"uncorrectable ECC error|ECC_UNCORRECTABLE",
        "its GPU has a memory error that it cannot correct",
    ),
    (Cause.HARDWARE_FAULT, r"fallen off the bus|GPU is lost", "its GPU has dropped off the PCIe bus"),
    (
        Cause.HARDWARE_FAULT,
        r"NVRM: Xid \([^)\n]*\): (48|6[234]|74|79|9[245]|119|120|140)\b",
        "the driver reports a fault of the GPU, Xid {0}",
    ),
    # The container.
    (
        Cause.DEVICE_MISSING,
        r"unresolvable CDI devices ([^\s,]+(?:, [^\s,]+)*)"
        r"|nvidia-container-cli: device error: ([^\s:]+): unknown device",
        "its container engine knows no GPU {0}",
    ),
    (
        Cause.DEVICE_MISSING,
        r"could not select device driver",
        "docker is not configured to give GPUs to containers",
    ),
    (
        Cause.DEVICE_MISSING,
        r"failed to stat CDI host device \"([^\"\n]+)\"",
        "its GPU's description for containers names {0}, which does not exist",
    ),
    (
        Cause.DEVICE_MISSING,
        r"\bl?stat (/dev/(?:nvidia|kfd|dri/)[^\s:]*): no such file",
        "{0}, which its container needs, does not exist",
    ),
    (
        Cause.NOT_EXECUTABLE,
        r"exec: \"([^\"\n]+)\": (?:executable file not found|stat \S+ no such file)",
        "its image has no program {0}",
    ),
    # Who else uses the GPU.
    (
        Cause.DEVICE_BUSY,
        r"CUDA-capable device(?:s|\(s\)) (?:is/)?are busy or unavailable|cudaErrorDevicesUnavailable",
        "its GPU is held by another process or does not admit a second one",
    ),
    (
        Cause.MPS_UNREACHABLE,
        r"\bMPS (?:client|server)\b|cudaErrorMps|CUDA_ERROR_MPS_",
        "MPS does not serve it",
    ),
    # The program and its arguments.
    (Cause.NOT_EXECUTABLE, r"cannot be started: ", "its program cannot be started"),
    (
        Cause.BAD_ARGUMENT,
        r"error: (?:invalid argument|unknown argument|unrecognized arguments): ([^\s=]+)"
        r"|worker: (\S+): the embedded engine has no such",
        "it does not know the argument {0}",
    ),
    (
        Cause.BAD_ARGUMENT,
        r"error: argument (--[\w/-]+): (?:invalid|expected) .{1,400}",
        "its argument {0} has a value that it does not take",
    ),
    (
        Cause.BAD_ARGUMENT,
        r"Sleep mode is not supported on current platform",
        "vLLM cannot sleep on this device",
    ),
    (
        Cause.BAD_ARGUMENT,
        r"worker: \S+: the embedded engine takes|worker: \S+: (?:its value|'[^'\n]*' is no)|error while "
        r"handling argument",
        "one of its arguments is wrong",
    ),
    (
        Cause.BAD_ARGUMENT,
        r"quantized V cache requires flash_attn",
        "a quantised V cache needs flash attention",
    ),
    (
        Cause.PORT_IN_USE,
        r"couldn't bind HTTP server socket.{0,300}port: (\d+)",
        "its port {0} is in use",
    ),
    (Cause.PORT_IN_USE, r"(?i:address already in use)|EADDRINUSE", "its port is in use"),
    # The model's files.
    (Cause.NO_SUCH_FILE, r"failed to open \S.{0,400}No such file", "there is no such model file"),
    (
        Cause.PERMISSION_DENIED,
        r"failed to open \S.{0,400}Permission denied",
        "the model file may not be read",
    ),
    (Cause.NO_SUCH_FILE, r"failed to open GGUF file", "the model file cannot be opened"),
    (
        Cause.NOT_A_MODEL,
        r"invalid magic characters|failed to read magic|really a GG[MU][LF] file",
        "the model file is not a GGUF file",
    ),
    (
        Cause.UNSUPPORTED_ARCHITECTURE,
        r"(?:unknown|unsupported) model architecture:? '([^'\n]*)'"
        r"|Model architectures \['([^'\n]*)'.{0,80}(?:not supported|failed to be inspected)",
        "its build does not know the architecture '{0}'",
    ),
    (
        Cause.UNSUPPORTED_ARCHITECTURE,
        r"does not recognize this architecture",
        "its build does not know the architecture",
    ),
    (
        Cause.UNSUPPORTED_QUANTISATION,
        r"has invalid ggml type (\d+)|of type (\d+) \(TYPE_\S+ REMOVED|Unknown quantization method: (\w+)",
        "its build cannot read the number format {0} of the weights",
    ),
    (
        Cause.CORRUPT_MODEL,
        r"not within the file bounds|model is corrupted or incomplete|PytorchStreamReader failed",
        "the model file is truncated or damaged",
    ),
    (
        Cause.CORRUPT_MODEL,
        r"gguf_init_from_reader: |string length \d+ exceeds|failed to read (?:key-value|tensor)"
        r"|while deserializing header",
        "the header of the model file is damaged",
    ),
    (Cause.MODEL_MISMATCH, r"missing tensor '([^'\n]*)'", "the model file lacks the tensor {0}"),
    (
        Cause.MODEL_MISMATCH,
        r"wrong number of tensors; expected (\d+), got (\d+)",
        "its build finds a place for {1} of the file's {0} tensors",
    ),
    (
        Cause.NO_SUCH_FILE,
        r"Repo id must be in the form .{1,60}: '(/[^'\n]*)'",
        "there is no folder {0}",
    ),
    (
        Cause.NO_SUCH_FILE,
        r"local directory specified: '(/[^'\n]*)'",
        "the folder {0} has no config.json",
    ),
    (
        Cause.NO_SUCH_FILE,
        r"Cannot find any model weights with `([^`\n]*)`",
        "the folder {0} has no weights",
    ),
    (
        Cause.CORRUPT_MODEL,
        r"Couldn't instantiate the backend tokenizer",
        "its folder lacks the tokenizer",
    ),
    (
        Cause.REPOSITORY_REFUSED,
        r"gated repo|GatedRepo|RepositoryNotFound|Repository Not Found|Invalid repository ID"
        r"|not a valid model identifier|40[13] Client Error",
        "the model hub does not give out its model",
    ),
    (Cause.DISK_FULL, r"No space left on device|StorageFull|Disk quota exceeded", "the disk is full"),
    # The driver and what the GPU can do.
    (
        Cause.NO_KERNEL_IMAGE,
        r"no kernel image is available|NO_BINARY_FOR_GPU|NoKernelImageForDevice",
        "its build has no code for this GPU",
    ),
    (
        Cause.DRIVER_TOO_OLD,
        r"driver version is insufficient|NVIDIA driver on your system is too old|unsupported toolchain",
        "the NVIDIA driver is too old for its build",
    ),
    (
        Cause.CARD_TOO_OLD,
        r"[Bb]float16 is only supported on GPUs|[Qq]uantization (?:method \S+|scheme) is not supported for"
        r"|compute capability below \d",
        "its GPU is too old for this model's number format",
    ),
    (
        Cause.DRIVER_UNAVAILABLE,
        r"(?i)driver/library version mismatch|unsupported display driver|found no nvidia driver"
        r"|system not yet initialized",
        "the NVIDIA driver does not work",
    ),
    # Memory.
    (
        Cause.CONTEXT_TOO_LARGE,
        r"max seq len \((\d+)\).{0,60}larger than",
        "the memory left after the weights does not hold its context of {0} tokens",
    ),
    (
        Cause.CONTEXT_TOO_LARGE,
        r"max_model_len \((\d+)\) is greater than the derived max_model_len \(\w+=(\d+)",
        "its context of {0} tokens is longer than the {1} that the model takes",
    ),
    (
        Cause.CONTEXT_TOO_LARGE,
        r"failed to allocate buffer for (?:the )?kv cache|kv_cache_init\(\) failed|No available memory for "
        r"the cache blocks",
        "the memory left after the weights does not hold its context",
    ),
    (
        _GPU_MEMORY,
        r"Free memory on device (?:cuda:\d+ )?\(([\d.]+)/([\d.]+) GiB\) on startup is less than",
        "only {0} of {1} GiB of its GPU are free, less than it is configured to use",
    ),
    (
        _GPU_MEMORY,
        r"allocating ([\d.]+) MiB on device (\d+): (?:cuda|hip|musa)Malloc failed",
        "its device {1} has no room for another {0} MiB",
    ),
    (
        _GPU_MEMORY,
        r"(?:CUDA|HIP) out of memory\. Tried to allocate ([\d.]+ [KMG]iB)",
        "its GPU has no room for another {0}",
    ),
    (
        _GPU_MEMORY,
        r"(?:CUDA|ROCm|HIP) error(?: 2)?(?: at \S+)?: out of memory|(?:cuda|hip|musa)Malloc failed"
        r"|(?:unable|failed) to allocate (?:CUDA|ROCm|Vulkan|SYCL|Metal)\d* buffer|ErrorOutOfDeviceMemory"
        r"|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation",
        "its GPU is out of memory",
    ),
    (
        Cause.HOST_MEMORY,
        r"Available memory on node \d+ \(([\d.]+)/([\d.]+) GiB\) on .{1,20} is less than",
        "only {0} of {1} GiB of RAM are free, less than it is configured to use",
    ),
    (
        Cause.HOST_MEMORY,
        r"model requires more system memory \(([^)\n]*)\) than is available \(([^)\n]*)\)",
        "it needs {0} of RAM and {1} are free",
    ),
    (
        Cause.HOST_MEMORY,
        r"(?:unable|failed) to allocate CPU buffer|bad_alloc|^MemoryError|can't allocate memory"
        r"|Cannot allocate memory"
        r"|(?i:unable to allocate|failed to allocate|out of memory)(?! killer|: Killed)",
        "it is out of memory",
    ),
    (
        Cause.OOM_KILLED,
        r"killed by the OOM killer|Killed process \d+|oom-kill|signal: killed",
        "the kernel killed it when memory ran out",
    ),
)
"""Signatures that decide at once."""

WEAK: Final = signatures(
    (
        Cause.GPU_COMMUNICATION,
        r"peer access (?:is not|has not|is already)|NCCL error|nccl\w+Error\b",
        "its GPUs cannot talk to each other",
    ),
    (
        Cause.ILLEGAL_INSTRUCTION,
        r"(?i:illegal instruction)|AMX is not ready",
        "it met an instruction that this processor does not have: its build is for another one",
    ),
    (
        Cause.GPU_FAULT,
        r"CUDA error: (?!no CUDA-capable)(\S.{0,120})",
        "its work on the GPU failed: {0}",
    ),
    (
        Cause.DRIVER_UNAVAILABLE,
        r"failed to initialize CUDA|no CUDA-capable device is detected|CUDA_ERROR_NO_DEVICE",
        "the driver gave it no GPU",
    ),
    (Cause.GPU_FAULT, r"(CUDA_ERROR_\w+|CUBLAS_STATUS_\w+)", "its work on the GPU failed: {0}"),
    (Cause.GPU_FAULT, r"NVRM: Xid \([^)\n]*\): (\d+)", "the driver reports an error of its work, Xid {0}"),
    (
        Cause.MISSING_LIBRARY,
        r"(lib\S{1,80}): cannot open shared object file",
        "a library is missing on this machine: {0}",
    ),
    (
        Cause.MISSING_PACKAGE,
        r"(?:No module named '?|No package metadata was found for )([\w.-]+)",
        "the package {0} is not installed",
    ),
    (Cause.PERMISSION_DENIED, r"(?i:permission denied)", "something may not be read or written"),
    (Cause.NO_SUCH_FILE, r"FileNotFoundError|No such file or directory", "a file is missing"),
    (
        Cause.ILLEGAL_INSTRUCTION,
        r"(?:Worker|Engine core) proc (\S+) died unexpectedly \(exit code: -4\)",
        "its process {0} met an instruction that this processor does not have: its build is for another one",
    ),
    (
        Cause.CRASHED,
        r"(?:Worker|Engine core) proc (\S+) died unexpectedly \(exit code: -(?:6|7|8|11)\)",
        "its process {0} crashed",
    ),
    (
        Cause.OOM_KILLED,
        r"(?:Worker|Engine core) proc (\S+) died unexpectedly|Failed core proc\(s\): \{'([^'\n]*)': -9\b",
        "its process {0} died without a message, as when the kernel kills it for memory",
    ),
    (Cause.LOAD_TIMEOUT, r"timed out waiting for llama runner", "it took too long to load"),
    (Cause.INTERNAL_CHECK, r"GGML_ASSERT\(|GGML_ABORT|ggml_abort", "an internal check failed"),
)
"""Signatures that count only if neither a strong signature nor a clear signal does."""

BENIGN: Final = re.compile(
    r"pinned memory|failed to m(?:un)?lock|fit params to free device memory|normal during memory fitting"
    r"|while trying to fit params|destroy_process_group|\braise \w{1,60}\("
)
"""Lines that look like a cause but are not: failures that an engine ignores, source code of tracebacks."""

UNINFORMATIVE: Final = re.compile(
    r"failed to (?:load|create|init\w*) \S{0,60}\s?(?:model|context|server)|exiting due to"
    r"|failed to load model|Failed to init server|due to an exception in a background process"
    r"|See root cause above"
)
"""What llama.cpp and vLLM print after any failure."""
