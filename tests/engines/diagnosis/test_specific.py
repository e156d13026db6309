"""Lines of engines as public reports have them (llama.cpp, vLLM, PyTorch, ROCm, SYCL, Vulkan, docker, NVML)."""
# ruff: noqa: E501

import pytest

from cotenant.domain.exit_causes import Cause
from cotenant.engines.diagnosis.diagnosis import diagnose

LOADING, RUNNING = False, True

# The lines, the status that the engine ended with, whether it was serving, and the cause.
LINES: list[tuple[str, int, bool, Cause]] = [
    (
        "0.00.1 E llama_init_from_model: model does not support different K (q4_0) and V (f16) types\n0.00.2 E common_init_: failed to create context with model 'm.gguf'",
        1,
        LOADING,
        Cause.BAD_ARGUMENT,
    ),
    (
        "llama_model_load: error loading model: check_tensor_dims: tensor 'blk.0.attn_q.weight' has wrong shape; expected  4096,  4096, got  4096,  5120,     1,     1\nllama_model_load_from_file_impl: failed to load model",
        1,
        LOADING,
        Cause.MODEL_MISMATCH,
    ),
    (
        "llama_model_load: error loading model: error loading model hyperparameters: key not found in model: phi3.attention.sliding_window\n",
        1,
        LOADING,
        Cause.MODEL_MISMATCH,
    ),
    (
        "llama_model_load: error loading model: error loading model vocabulary: unknown pre-tokenizer type: 'deepseek-r1-qwen'\nllama_model_load_from_file_impl: failed to load model",
        1,
        LOADING,
        Cause.UNSUPPORTED_ARCHITECTURE,
    ),
    (
        "clip_init: failed to load model 'mmproj.gguf': load_hparams: unknown projector type: kimivl\nmtmd_init_from_file: error: Failed to load CLIP model from mmproj.gguf\nsrv    load_model: failed to load multimodal model, 'mmproj.gguf'",
        1,
        LOADING,
        Cause.UNSUPPORTED_ARCHITECTURE,
    ),
    (
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        1,
        RUNNING,
        Cause.GPU_MEMORY_RUNNING,
    ),
    (
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.",
        1,
        LOADING,
        Cause.DRIVER_UNAVAILABLE,
    ),
    (
        "UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted on non supported HW\nRuntimeError: Unexpected error from cudaGetDeviceCount()... Error 804: forward compatibility was attempted on non supported HW",
        1,
        LOADING,
        Cause.DRIVER_UNAVAILABLE,
    ),
    (
        "docker: Error response from daemon: ... stderr: Auto-detected mode as 'legacy'\nnvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update your driver to a newer version, or use an earlier cuda container: unknown.",
        125,
        LOADING,
        Cause.DRIVER_TOO_OLD,
    ),
    (
        "Failed to initialize NVML: Unknown Error\nRuntimeError: No CUDA GPUs are available",
        1,
        LOADING,
        Cause.DRIVER_UNAVAILABLE,
    ),
    (
        "./llama-server: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by ./libllama.so)",
        1,
        LOADING,
        Cause.MISSING_LIBRARY,
    ),
    (
        "./llama-server: symbol lookup error: ./libggml-cuda.so: undefined symbol: cublasGemmGroupedBatchedEx, version libcublas.so.12",
        127,
        LOADING,
        Cause.MISSING_LIBRARY,
    ),
    (
        "bash: ./llama-server: cannot execute binary file: Exec format error",
        126,
        LOADING,
        Cause.NOT_EXECUTABLE,
    ),
    (
        '"hipErrorNoBinaryForGpu: Unable to find code object for all current devices!"',
        -6,
        LOADING,
        Cause.NO_KERNEL_IMAGE,
    ),
    (
        "Memory access fault by GPU node-1 (Agent handle: 0x55d1) on address 0x7f0. Reason: Page not present or supervisor privilege.",
        -6,
        RUNNING,
        Cause.GPU_FAULT,
    ),
    (
        "terminate called after throwing an instance of 'vk::DeviceLostError'\n  what():  vk::Queue::submit: ErrorDeviceLost",
        -6,
        RUNNING,
        Cause.GPU_FAULT,
    ),
    (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n  Value error, Total number of attention heads (28) must be divisible by tensor parallel size (8).",
        1,
        LOADING,
        Cause.BAD_ARGUMENT,
    ),
    (
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.\nCheck your internet connection",
        1,
        LOADING,
        Cause.REPOSITORY_REFUSED,
    ),
    ("RuntimeError: FlashAttention only supports Ampere GPUs or newer.", 1, RUNNING, Cause.CARD_TOO_OLD),
    ("OSError: [Errno 24] Too many open files", 1, RUNNING, Cause.DESCRIPTORS),
    (
        "ImportError: /usr/lib/x86_64-linux-gnu/libcuda.so.1: file too short",
        1,
        LOADING,
        Cause.MISSING_LIBRARY,
    ),
    (
        "ValueError: To serve at least one request with the models's max seq len (40960), (5.62 GiB KV cache is needed, which is larger than the available KV cache memory (4.43 GiB). Based on the available memory, the estimated maximum mod",
        1,
        LOADING,
        Cause.CONTEXT_TOO_LARGE,
    ),
    (
        "NVRM: Xid (PCI:0000:01:00): 31, pid=999, name=vllm, Ch 00000018, intr 00000000. MMU Fault",
        -6,
        RUNNING,
        Cause.GPU_FAULT,
    ),
    (
        "0.00.1 I load_backend: failed to load /app/libggml-cuda.so\n0.00 E error: unknown device: CUDA0",
        1,
        LOADING,
        Cause.MISSING_LIBRARY,
    ),
    (
        "terminate called after throwing an instance of 'std::invalid_argument'\n  what():  stoi",
        1,
        LOADING,
        Cause.BAD_ARGUMENT,
    ),
    (
        "E llama_init_from_model: K cache type q4_0 with block size 32 does not divide n_embd_head_k=40",
        1,
        LOADING,
        Cause.BAD_ARGUMENT,
    ),
    ("libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by x)", 1, LOADING, Cause.MISSING_LIBRARY),
    (
        "docker: Error response from daemon: unknown or invalid runtime name: nvidia.",
        1,
        LOADING,
        Cause.DEVICE_MISSING,
    ),
    (
        "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown",
        1,
        LOADING,
        Cause.DRIVER_UNAVAILABLE,
    ),
    (
        "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object file: no such file or directory: unknown",
        1,
        LOADING,
        Cause.MISSING_LIBRARY,
    ),
    ("Failed to initialize NVML: Driver/library version mismatch", 1, LOADING, Cause.DRIVER_UNAVAILABLE),
    (
        "rocBLAS error: Cannot read /opt/rocm/lib/rocblas/library/TensileLibrary.dat: No such file or directory for GPU arch : gfx1103",
        1,
        LOADING,
        Cause.NO_KERNEL_IMAGE,
    ),
    ("ROCm error: invalid device function", 1, RUNNING, Cause.NO_KERNEL_IMAGE),
    ("CUDA error: the launch timed out and was terminated", 1, RUNNING, Cause.GPU_FAULT),
    (
        "ggml_vulkan: Device memory allocation of size 1073741824 failed.\nggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        1,
        LOADING,
        Cause.GPU_MEMORY_LOADING,
    ),
    ("ggml_vulkan: Error: Requested buffer size exceeds device memory", 1, LOADING, Cause.GPU_MEMORY_LOADING),
    (
        "Native API failed. Native API returns: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)",
        1,
        RUNNING,
        Cause.GPU_MEMORY_RUNNING,
    ),
    ("Native API returns: 20 (UR_RESULT_ERROR_DEVICE_LOST)", 1, RUNNING, Cause.GPU_FAULT),
    (
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        1,
        RUNNING,
        Cause.GPU_FAULT,
    ),
    (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
        1,
        RUNNING,
        Cause.GPU_MEMORY_RUNNING,
    ),
    (
        "ValueError: The repository for X contains custom code which must be executed to correctly load the model.",
        1,
        LOADING,
        Cause.BAD_ARGUMENT,
    ),
    (
        "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder",
        1,
        LOADING,
        Cause.REPOSITORY_REFUSED,
    ),
    (
        "llama_model_load: error loading model: done_getting_tensors: wrong number of tensors; expected 292, got 291",
        1,
        LOADING,
        Cause.MODEL_MISMATCH,
    ),
    (
        "error loading model vocabulary: cannot find tokenizer merges in model file",
        1,
        LOADING,
        Cause.MODEL_MISMATCH,
    ),
    (
        "llama_model_load: error loading model: unsupported model architecture 'foo'",
        1,
        LOADING,
        Cause.UNSUPPORTED_ARCHITECTURE,
    ),
    ("RuntimeError: CUDA error: an illegal memory access was encountered", 1, RUNNING, Cause.GPU_FAULT),
    ("RuntimeError: NCCL error: unhandled system error", 1, RUNNING, Cause.GPU_COMMUNICATION),
    ("E: hipErrorNoDevice: no ROCm-capable device is detected", 1, LOADING, Cause.DRIVER_UNAVAILABLE),
    (
        "sycl::_V1::exception: No device of requested type available. -1 (PI_ERROR_DEVICE_NOT_FOUND)",
        1,
        LOADING,
        Cause.DRIVER_UNAVAILABLE,
    ),
    (
        "ImportError: /usr/lib/libllama.so: undefined symbol: ggml_backend_cuda_init",
        1,
        LOADING,
        Cause.MISSING_LIBRARY,
    ),
    ("CUDA driver version is insufficient for CUDA runtime version", 1, LOADING, Cause.DRIVER_TOO_OLD),
    ("The NVIDIA driver on your system is too old (found version 11040)", 1, LOADING, Cause.DRIVER_TOO_OLD),
    (
        "DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory. Please try to raise your shared memory limit.",
        1,
        LOADING,
        Cause.HOST_MEMORY,
    ),
    ("Value error, The tensor parallel size (3) must divide num_heads", 1, LOADING, Cause.BAD_ARGUMENT),
    (
        "RuntimeError: Flash attention 3 only supported on Hopper GPUs (compute capability 9.0)",
        1,
        LOADING,
        Cause.CARD_TOO_OLD,
    ),
    (
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
        1,
        LOADING,
        Cause.CARD_TOO_OLD,
    ),
    (
        "standard_init_linux.go:228: exec user process caused: exec format error",
        1,
        LOADING,
        Cause.NOT_EXECUTABLE,
    ),
    ("ggml-cuda.cu: CUDA error: out of memory", 1, RUNNING, Cause.GPU_MEMORY_RUNNING),
    ("accept: Too many open files", 1, RUNNING, Cause.DESCRIPTORS),
    (
        "CUDA initialization: CUDA unknown error - this may be due to an incorrectly set up environment",
        1,
        LOADING,
        Cause.DRIVER_UNAVAILABLE,
    ),
]


@pytest.mark.parametrize(("log", "returncode", "was_ready", "cause"), LINES)
def test_a_line_with_one_meaning_is_told_by_it(
    log: str, returncode: int, was_ready: bool, cause: Cause
) -> None:
    found = diagnose(returncode, log, was_ready=was_ready)

    assert found.cause is cause, found
    assert "{" not in found.summary
