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
    """A pattern that shows a cause; `{0}` and so on in the summary are the groups of the pattern.

    `remedy` is what to do where the remedy of the cause is not right.
    """

    cause: Cause
    pattern: re.Pattern[str]
    summary: str
    remedy: str = ""


def parse(table: str) -> tuple[Signature, ...]:
    """Return the signatures of a table, in its order.

    A row is `cause: summary`, then lines that are indented: `> remedy`, or alternatives of the pattern, with
    a comment after two spaces and `#`.
    """
    found = []
    for row in re.split(r"\n(?=\S)", table.strip()):
        head, *rest = row.splitlines()
        cause, _, summary = head.partition(": ")
        lines = [line.partition("  # ")[0].strip() for line in rest]
        pattern = "|".join(line for line in lines if not line.startswith(">"))
        remedy = " ".join(line[2:] for line in lines if line.startswith(">"))
        found.append(Signature(Cause(cause), re.compile(pattern, re.MULTILINE), summary, remedy))
    return tuple(found)


STRONG: Final = parse(r"""
hardware_fault: its GPU has a memory error that it cannot correct
    uncorrectable ECC error|ECC_UNCORRECTABLE
hardware_fault: its GPU has dropped off the PCIe bus
    fallen off the bus|GPU is lost
hardware_fault: the driver reports a fault of the GPU, Xid {0}
    NVRM: Xid \([^)\n]*\): (48|6[234]|74|79|9[245]|119|120|140)\b
device_missing: its container engine knows no GPU {0}
    unresolvable CDI devices ([^\s,]+(?:, [^\s,]+)*)
    nvidia-container-cli: device error: ([^\s:]+): unknown device
device_missing: docker is not configured to give GPUs to containers
    could not select device driver
device_missing: its GPU's description for containers names {0}, which does not exist
    failed to stat CDI host device \"([^\"\n]+)\"
device_missing: {0}, which its container needs, does not exist
    \bl?stat (/dev/(?:nvidia|kfd|dri/)[^\s:]*): no such file
not_executable: its image has no program {0}
    exec: \"([^\"\n]+)\": (?:executable file not found|stat \S+ no such file)
device_busy: its GPU is held by another process or does not admit a second one
    CUDA-capable device(?:s|\(s\)) (?:is/)?are busy or unavailable|cudaErrorDevicesUnavailable
mps_unreachable: MPS does not serve it
    \bMPS (?:client|server)\b|cudaErrorMps|CUDA_ERROR_MPS_
not_executable: its program cannot be started
    cannot be started:
bad_argument: it does not know the argument {0}
    error: (?:invalid argument|unknown argument|unrecognized arguments): ([^\s=]+)
    worker: (\S+): the embedded engine has no such
bad_argument: its argument {0} has a value that it does not take
    error: argument (--[\w/-]+): (?:invalid|expected) .{1,400}
bad_argument: vLLM cannot sleep on this device
    Sleep mode is not supported on current platform
bad_argument: one of its arguments is wrong
    worker: \S+: the embedded engine takes|worker: \S+: (?:its value|'[^'\n]*' is no)
    error while handling argument
port_in_use: its port {0} is in use
    couldn't bind HTTP server socket.{0,300}port: (\d+)
port_in_use: its port is in use
    (?i:address already in use)|EADDRINUSE
no_such_file: there is no such model file
    failed to open \S.{0,400}No such file
permission_denied: the model file may not be read
    failed to open \S.{0,400}Permission denied
no_such_file: the model file cannot be opened
    failed to open GGUF file
not_a_model: the model file is not a GGUF file
    invalid magic characters|failed to read magic|really a GG[MU][LF] file
unsupported_architecture: its build does not know the architecture '{0}'
    (?:unknown|unsupported) model architecture:? '([^'\n]*)'
    Model architectures \['([^'\n]*)'.{0,80}(?:not supported|failed to be inspected)
unsupported_architecture: its build does not know the architecture
    does not recognize this architecture
unsupported_quantisation: its build cannot read the number format {0} of the weights
    has invalid ggml type (\d+)|of type (\d+) \(TYPE_\S+ REMOVED|Unknown quantization method: (\w+)
corrupt_model: the model file is truncated or damaged
    not within the file bounds|model is corrupted or incomplete|PytorchStreamReader failed
corrupt_model: the header of the model file is damaged
    gguf_init_from_reader:|string length \d+ exceeds|failed to read (?:key-value|tensor)
    while deserializing header
model_mismatch: the model file lacks the tensor {0}
    missing tensor '([^'\n]*)'
model_mismatch: its build finds a place for {1} of the file's {0} tensors
    wrong number of tensors; expected (\d+), got (\d+)
no_such_file: there is no folder {0}
    Repo id must be in the form .{1,60}: '(/[^'\n]*)'
no_such_file: the folder {0} has no config.json
    local directory specified: '(/[^'\n]*)'
no_such_file: the folder {0} has no weights
    Cannot find any model weights with `([^`\n]*)`
corrupt_model: its folder lacks the tokenizer
    Couldn't instantiate the backend tokenizer
repository_refused: the model hub does not give out its model
    gated repo|GatedRepo|RepositoryNotFound|Repository Not Found|Invalid repository ID
    not a valid model identifier|40[13] Client Error
disk_full: the disk is full
    No space left on device|StorageFull|Disk quota exceeded
no_kernel_image: its build has no code for this GPU
    no kernel image is available|NO_BINARY_FOR_GPU|NoKernelImageForDevice
driver_too_old: the NVIDIA driver is too old for its build
    driver version is insufficient|NVIDIA driver on your system is too old|unsupported toolchain
card_too_old: its GPU is too old for this model's number format
    [Bb]float16 is only supported on GPUs|[Qq]uantization (?:method \S+|scheme) is not supported for
    compute capability below \d
driver_unavailable: the NVIDIA driver does not work
    (?i:driver/library version mismatch)|(?i:unsupported display driver)|(?i:found no nvidia driver)
    (?i:system not yet initialized)
context_too_large: the memory left after the weights does not hold its context of {0} tokens
    max seq len \((\d+)\).{0,60}larger than
context_too_large: its context of {0} tokens is longer than the {1} that the model takes
    max_model_len \((\d+)\) is greater than the derived max_model_len \(\w+=(\d+)
context_too_large: the memory left after the weights does not hold its context
    failed to allocate buffer for (?:the )?kv cache|kv_cache_init\(\) failed
    No available memory for the cache blocks
gpu_memory_loading: only {0} of {1} GiB of its GPU are free, less than it is configured to use
    Free memory on device (?:cuda:\d+ )?\(([\d.]+)/([\d.]+) GiB\) on startup is less than
gpu_memory_loading: its device {1} has no room for another {0} MiB
    allocating ([\d.]+) MiB on device (\d+): (?:cuda|hip|musa)Malloc failed
gpu_memory_loading: its GPU has no room for another {0}
    (?:CUDA|HIP) out of memory\. Tried to allocate ([\d.]+ [KMG]iB)
gpu_memory_loading: its GPU is out of memory
    (?:CUDA|ROCm|HIP) error(?: 2)?(?: at \S+)?: out of memory|(?:cuda|hip|musa)Malloc failed
    (?:unable|failed) to allocate (?:CUDA|ROCm|Vulkan|SYCL|Metal)\d* buffer|ErrorOutOfDeviceMemory
    CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation
host_memory: only {0} of {1} GiB of RAM are free, less than it is configured to use
    Available memory on node \d+ \(([\d.]+)/([\d.]+) GiB\) on .{1,20} is less than
host_memory: it needs {0} of RAM and {1} are free
    model requires more system memory \(([^)\n]*)\) than is available \(([^)\n]*)\)
host_memory: it is out of memory
    (?:unable|failed) to allocate CPU buffer|bad_alloc|^MemoryError|can't allocate memory
    Cannot allocate memory|(?i:unable to allocate|failed to allocate|out of memory)(?! killer|: Killed)
oom_killed: the kernel killed it when memory ran out
    killed by the OOM killer|Killed process \d+|oom-kill|signal: killed
""")
"""Signatures that decide at once."""

WEAK: Final = parse(r"""
gpu_communication: its GPUs cannot talk to each other
    peer access (?:is not|has not|is already)|(?i:NCCL error)|nccl\w+Error\b|custom_all_reduce\.cuh
    Watchdog caught collective operation timeout|Gloo connectFullMesh failed
illegal_instruction: it met an instruction that this processor does not have: its build is for another one
    (?i:illegal instruction)|AMX is not ready
gpu_fault: its work on the GPU failed: {0}
    CUDA error: (?!no CUDA-capable)(\S.{0,120})
driver_unavailable: the driver gave it no GPU
    failed to initialize CUDA|no CUDA-capable device is detected|CUDA_ERROR_NO_DEVICE
    ggml_vulkan: No devices found
gpu_fault: its work on the GPU failed: {0}
    (CUDA_ERROR_\w+|(?:CUBLAS|CUDNN)_STATUS_\w+)|ggml_vulkan: (Compute pipeline creation failed)
gpu_fault: the driver reports an error of its work, Xid {0}
    NVRM: Xid \([^)\n]*\): (\d+)
missing_library: a library is missing on this machine: {0}
    (lib\S{1,80}): cannot open shared object file
missing_package: the package {0} is not installed
    (?:No module named '?|No package metadata was found for )([\w.-]+)
repository_refused: a name cannot be resolved: is the model hub within reach?
    gaierror|Temporary failure in name resolution|Name or service not known
permission_denied: something may not be read or written
    (?i:permission denied)
no_such_file: a file is missing
    FileNotFoundError|No such file or directory
illegal_instruction: its process {0} met an instruction that this processor lacks: its build is for another
    (?:Worker|Engine core) proc (\S+) died unexpectedly \(exit code: -4\)
crashed: its process {0} crashed
    (?:Worker|Engine core) proc (\S+) died unexpectedly \(exit code: -(?:6|7|8|11)\)
oom_killed: its process {0} died without a message, as when the kernel kills it for memory
    (?:Worker|Engine core) proc (\S+) died unexpectedly|Failed core proc\(s\): \{'([^'\n]*)': -9\b
load_timeout: it took too long to load
    timed out waiting for llama runner
internal_check: an internal check failed
    GGML_ASSERT\(|GGML_ABORT|ggml_abort
""")
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
