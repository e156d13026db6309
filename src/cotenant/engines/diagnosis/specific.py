"""Specific signatures: lines with one meaning, so that they count before all others.

One row: cause, engines, pattern, summary, and where the line was seen. A remedy belongs to its cause.
"""

from typing import Final

from cotenant.domain.exit_causes import Cause
from cotenant.engines.diagnosis.signatures import Signature, signatures

_ROWS: Final[tuple[tuple[Cause, str, str, str, str], ...]] = (
    (
        Cause.BAD_ARGUMENT,
        "llama.cpp",
        r"does not support different K \((\w+)\) and V \((\w+)\) types",
        "it takes K and V caches of one type only, not {0} and {1}",
        "llama-context.cpp",
    ),
    (
        Cause.BAD_ARGUMENT,
        "llama.cpp",
        r"([KV]) cache type (\w+) with block size (\d+) does not divide",
        "its {0} cache cannot be of type {1}: the size of a head is no multiple of {2}",
        "llama-context.cpp",
    ),
    (
        Cause.BAD_ARGUMENT,
        "vLLM",
        r"attention heads \((\d+)\) must be divisible by tensor.parallel.size \((\d+)\)",
        "its {0} attention heads cannot be divided over {1} GPUs",
        "vllm/config",
    ),
    (
        Cause.BAD_ARGUMENT,
        "vLLM",
        r"AssertionError: \d+ is not divisible by (\d+)|tensor.parallel.size \((\d+)\) must divide",
        "it cannot be divided over {0} GPUs",
        "vllm/distributed/utils.py",
    ),
    (
        Cause.BAD_ARGUMENT,
        "vLLM, transformers",
        r"trust_remote_code=True|custom code which must be executed",
        "the model brings code of its own, which the engine does not run without `--trust-remote-code`",
        "transformers/dynamic_module_utils.py",
    ),
    (
        Cause.BAD_ARGUMENT,
        "llama.cpp",
        r"what\(\):\s{1,4}sto(?:i|l|ul|ll|ull|f|d)\b",
        "one of its arguments is not a number",
        "std::stoi",
    ),
    (
        Cause.MISSING_LIBRARY,
        "llama.cpp",
        r"load_backend: failed to load (\S+(?:cuda|hip|vulkan|sycl|musa)\S*)",
        "its backend {0} cannot be loaded",
        "ggml-backend-reg.cpp",
    ),
    (
        Cause.DEVICE_MISSING,
        "llama.cpp",
        r"(?:unknown|invalid) device: (\S+)",
        "its build finds no device {0}",
        "common/arg.cpp",
    ),
    (
        Cause.DEVICE_MISSING,
        "docker",
        r"unknown or invalid runtime name: (\S+)",
        "docker has no runtime {0}",
        "moby",
    ),
    (
        Cause.MODEL_MISMATCH,
        "llama.cpp",
        r"tensor '([^'\n]*)' has wrong (?:shape|type)",
        "the tensor {0} of the model file is not as its build expects",
        "llama-model-loader.cpp",
    ),
    (
        Cause.MODEL_MISMATCH,
        "llama.cpp",
        r"key not found in model: (\S+)|key (\S+) has wrong (?:type|array length)",
        "the model file lacks, or has otherwise, the key {0}, which its build wants",
        "llama-model-loader.cpp",
    ),
    (
        Cause.MODEL_MISMATCH,
        "vLLM, PyTorch",
        r"size mismatch for (\S{1,120}):|no module or parameter named '?([\w.]+)"
        r"|cannot find (tokenizer \w+) in model file",
        "the weights {0} do not fit what its build expects",
        "torch/nn/modules/module.py",
    ),
    (
        Cause.UNSUPPORTED_ARCHITECTURE,
        "llama.cpp",
        r"un(?:known|supported) (pre-tokenizer|tokenizer|projector)(?: type)?:? '?([\w.-]+)",
        "its build does not know the {0} {1}",
        "llama-vocab.cpp, clip.cpp",
    ),
    (
        Cause.UNSUPPORTED_ARCHITECTURE,
        "vLLM, transformers",
        r"Tokenizer class (\w+) does not exist",
        "its build does not know the tokenizer {0}",
        "transformers/tokenization_auto.py",
    ),
    (
        Cause.DRIVER_TOO_OLD,
        "docker",
        r"unsatisfied condition: (\w+[<>=]+[\d.]+)",
        "the NVIDIA driver is too old for its image, which asks for {0}",
        "nvidia-container-cli",
    ),
    (
        Cause.DRIVER_UNAVAILABLE,
        "vLLM, PyTorch, docker",
        r"Failed to infer device type|No (?:CUDA|HIP|XPU) GPUs are available|no ROCm-capable device"
        r"|NVML: (?:Unknown Error|Driver Not Loaded|GPU access blocked)|forward compatibility was attempted"
        r"|couldn't communicate with the NVIDIA driver|nvml error: |driver rpc error|hipErrorNoDevice"
        r"|[Uu]nable to open /dev/kfd|No device of requested type available|CUDA unknown error - this may be",
        "the driver gives it no GPU",
        "vllm/config/device.py, torch/cuda, nvidia-container-cli, SYCL, ROCr",
    ),
    (
        Cause.MISSING_LIBRARY,
        "any",
        r"version `((?:GLIBC|GLIBCXX|CXXABI|GCC|LIBGOMP|GOMP)_[\d.]+)' not found",
        "it needs {0}, which this machine's libraries are too old for",
        "ld.so",
    ),
    (
        Cause.MISSING_LIBRARY,
        "any",
        r"undefined symbol: (\w{1,200})",
        "its libraries are not of one version: the symbol {0} is missing",
        "ld.so",
    ),
    (
        Cause.MISSING_LIBRARY,
        "any",
        r"(lib[\w.+-]{1,80}): (?:file too short|invalid ELF header|wrong ELF class)",
        "the library {0} is damaged or of another kind of machine",
        "ld.so",
    ),
    (
        Cause.NOT_EXECUTABLE,
        "any",
        r"[Ee]xec format error|cannot execute binary file",
        "its program is for another kind of machine",
        "execve(2)",
    ),
    (
        Cause.NO_KERNEL_IMAGE,
        "ROCm, CUDA",
        r"hipErrorNoBinaryForGpu|Unable to find code object|device kernel image is invalid"
        r"|Cannot read \S{0,200}TensileLibrary|hipErrorInvalidDeviceFunction|invalid device function",
        "its build has no code for this GPU",
        "HIP, rocBLAS",
    ),
    (
        Cause.GPU_MEMORY_LOADING,
        "PyTorch, SYCL, ROCm, Vulkan",
        r"(?:CUBLAS|CUDNN|HIPBLAS|CUSOLVER)_STATUS_ALLOC_FAILED|rocblas_status_memory_error"
        r"|hipErrorOutOfMemory|ERROR_OUT_OF_(?:DEVICE_MEMORY|RESOURCES)|OutOfDeviceMemoryError"
        r"|buffer size exceeds device memory",
        "its GPU is out of memory",
        "cuBLAS, rocBLAS, SYCL, vulkan.hpp",
    ),
    (
        Cause.HOST_MEMORY,
        "PyTorch",
        r"insufficient shared memory|out of shared memory|shared memory limit",
        "its container has too little shared memory",
        "torch/utils/data",
    ),
    (
        Cause.GPU_FAULT,
        "ROCm, Vulkan, SYCL",
        r"(Memory access fault by GPU|ErrorDeviceLost|DeviceLostError|ERROR_DEVICE_LOST|GPU Hang"
        r"|HSA_STATUS_ERROR_EXCEPTION)",
        "its GPU was lost: {0}",
        "ROCr, vulkan.hpp",
    ),
    (
        Cause.CARD_TOO_OLD,
        "vLLM, Triton",
        r"(?:FlashAttention|[Ff]lash attention \d) only support\w* (?:on )?(?:Ampere|Hopper)"
        r"|only supports devices of CUDA Capability"
        r"|requires? (?:GPUs? with |a GPU with )?compute capability",
        "its GPU is too old for one of its kernels",
        "flash-attn, triton",
    ),
    (
        Cause.REPOSITORY_REFUSED,
        "vLLM, transformers",
        r"couldn't connect to 'https?://|outgoing traffic has been disabled|LocalEntryNotFoundError"
        r"|cannot find the requested files in the (?:disk|local) cache|Failed to resolve 'huggingface",
        "the model hub cannot be reached, and its files are not here",
        "huggingface_hub",
    ),
    (
        Cause.DESCRIPTORS,
        "any",
        r"Too many open files|\bEMFILE\b",
        "it may open no more files",
        "open(2)",
    ),
)

SPECIFIC: Final[tuple[Signature, ...]] = signatures(
    *((cause, pattern, summary) for cause, _, pattern, summary, _ in _ROWS)
)
"""Signatures of lines with one meaning."""
