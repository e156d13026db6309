"""More lines of engines, as public reports and their sources have them; `test_specific` has the first half."""
# ruff: noqa: E501

import pytest

from cotenant.domain.exit_causes import Cause
from cotenant.engines.diagnosis.diagnosis import diagnose
from cotenant.engines.diagnosis.signatures import parse

LINES = r"""
bad_argument
  1  llama_init_from_model: V cache quantization requires flash_attn
  1  llama_context: V cache quantization requires flash_attn\ncommon_init_from_params: failed to create context with model 'x.gguf'
  1  llama_init_from_model: V cache type q8_0 with block size 32 does not divide n_embd_head_v=80
  1  error while handling argument "--cache-type-k": Unsupported cache type: q3_K\n\nusage:\n-ctk,  --cache-type-k TYPE
  1  error: invalid argument: --flash-attn-x
  1  error while handling argument "-fa": error: unkown value for --flash-attn: '--jinja'
  1  error: the argument has been removed. use -np instead of --slots-x
  1  llama_model_load_from_file_impl: using device CUDA0 (NVIDIA RTX A5500) - 23000 MiB free\nggml_backend_cuda_split_buffer_type: device 1 is invalid\nmain: error: --tensor-split has 3 values, maximum is 2
  1  error: --model is required
  2  api_server.py: error: unrecognized arguments: --enable-foo
  2  vllm serve: error: argument --dtype: invalid choice: 'fp16' (choose from auto, half, float16, bfloat16, float, float32)
  1  ValueError: The number of required GPUs exceeds the total number of available GPUs in the placement group.
  1  ValidationError: 1 validation error for ParallelConfig\n  Value error, World size (4) is larger than the number of available GPUs (2) in this node. If this is intentional and you are using: ...
  1  ValueError: Tensor parallel size (8) exceeds available GPUs (4)
  1  AssertionError: 151936 is not divisible by 7
  1  ValueError: Vocabulary size (32003) is not divisible by tensor parallel size 2
  1  RuntimeError: shape mismatch: num_key_value_heads 2 must be divisible by tp_size 4
  1  ValueError: The output size of gate_up_proj 4864 is not divisible by weight quantization block_n = 128.
  1  ValueError: The input size is not aligned with the quantized weight shape. This can be caused by too large tensor parallel size.
  1  ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16]
  1  ValueError: Loading /models/x requires you to execute the configuration file in that repo on your local machine. Make sure you have read the code there to avoid malicious use, then set the option `trust_remote_code=True` to remove this error.
  1  RuntimeError: Failed to load the model config. If the model is a custom model not yet available in the HuggingFace transformers library, consider setting `trust_remote_code=True` in LLM or using the `--trust-remote-code` flag in the CLI.
  1  ValueError: The repository `/models/x` contains custom code which must be executed to correctly load the model.
  1  OSError: [Errno 99] error while attempting to bind on address ('::1', 8000, 0, 0): cannot assign requested address
  1  jinja2.exceptions.TemplateSyntaxError: expected token
 -6  terminate called after throwing an instance of 'std::runtime_error'\n  what():  this custom template is not supported, try using --jinja
  1  common_chat_templates_init: failed to parse chat template (defaulting to chatml): Expected value expression at row 1\nerror: chat template parsing error
card_too_old
  1  ValueError: The quantization method awq is not supported for the current GPU. Minimum capability: 75. Current capability: 61.
  1  ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 80. Current capability: 75.
  1  UR error: UR_RESULT_ERROR_UNSUPPORTED_FEATURE\nrequired aspect fp64 is not supported on the device
 -6  vk::PhysicalDevice::createDevice: ErrorExtensionNotPresent
 -6  vk::PhysicalDevice::createDevice: ErrorFeatureNotPresent
 -6  ggml_vulkan: device Vulkan0 does not support 16-bit storage.\nterminate called after throwing an instance of 'std::runtime_error'\n  what():  Unsupported device
  1  RuntimeError: Internal Triton PTX codegen error\n`ptxas` stderr: ptxas /tmp/x.ptx, line 6; error   : Feature '.bf16' requires .target sm_80 or higher
  1  ValueError: type fp8e4nv not supported in this architecture. The supported fp8 dtypes are ('fp8e4b15', 'fp8e5')
  1  RuntimeError: FlashAttention forward only supports Ampere GPUs or newer
  1  RuntimeError: torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0 or 8.9, or ROCm MI300+
  1  AssertionError: FlashMLA is only supported on Hopper and Blackwell devices
  1  triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 147456, Hardware limit: 101376. Reducing block sizes or `num_stages` may help.
context_too_large
  1  ValueError: User-specified max_model_len (131072) is greater than the derived max_model_len (max_position_embeddings=32768 or model_max_length=None in model's config.json).
  1  ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be stored in KV cache (40528). Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.
  1  ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.
  1  llama_kv_cache_init: failed to allocate buffer for kv cache\nllama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
corrupt_model
  1  gguf_init_from_file_impl: failed to read tensor info\nllama_model_load: error loading model: llama_model_loader: failed to load model from m.gguf
  1  llama_model_load: error loading model: tensor 'blk.63.ffn_up.weight' data is not within the file bounds, model is corrupted or incomplete
  1  safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge
  1  safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer
  1  safetensors_rust.SafetensorError: Error while deserializing: invalid header length
  1  OSError: Unable to load weights from pytorch checkpoint file
crashed
 -6+ /ggml.c:123: fatal error
139  Segmentation fault (core dumped)
-11  Fatal Python error: Segmentation fault
descriptors
  1  OSError: [Errno 24] Too many open files: '/models/m-00001.safetensors'
  1  RuntimeError: Too many open files. Communication with the workers is no longer possible. Please increase the limit using `ulimit -n` in the shell
device_busy
 -6  CUDA error: all CUDA-capable devices are busy or unavailable
device_missing
  1  ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected\nerror: invalid device: CUDA0
125  nvidia-container-cli: initialization error: WSL environment detected but no adapters were found: unknown
125  nvidia-container-cli: mount error: failed to add device rules: unable to find any existing device filters attached to the cgroup: bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted: unknown.
125  nvidia-container-cli: container error: cgroup subsystem devices not found: unknown.
125  nvidia-container-cli: device error: 7: unknown device: unknown
125  nvidia-container-cli: device error: GPU-1234: unknown device: unknown
125  nvidia-container-cli: ldcache error: open failed: /sbin/ldconfig.real: no such file or directory: unknown.
125  docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].
125  docker: Error response from daemon: could not select device driver "nvidia" with capabilities: [[gpu]]
125  docker: Error response from daemon: Unknown runtime specified nvidia.
125  docker: Error response from daemon: failed to discover GPU vendor from CDI: no known GPU vendor found.
125  docker: Error response from daemon: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=0
126  Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all
125  Error: stat nvidia.com/gpu=all: no such file or directory
127  Error: crun: cannot stat `/dev/nvidia-uvm`: No such file or directory: OCI runtime attempted to invoke a command that was not found
126  Error: OCI runtime error: crun: error executing hook `/usr/bin/nvidia-container-toolkit` (exit code: 1)
125  docker: Error response from daemon: error gathering device information while adding custom device "/dev/kfd": no such file or directory.
 -6  CUDA error: invalid device ordinal
  1  RuntimeError: CUDA error: invalid device ordinal
255  FATAL:   container creation failed: mount hook function failure: mount /dev/nvidia0: no such file
disk_full
  1  safetensors_rust.SafetensorError: Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })
driver_too_old
  1  ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version\nwarning: no usable GPU found
 -6  CUDA error: the provided PTX was compiled with an unsupported toolchain.
  1  RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver
125  nvidia-container-cli: requirement error: unsatisfied condition: driver>=535: unknown
driver_unavailable
  1  RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver
  9  NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.
  1  pynvml.NVMLError_LibRmVersionMismatch: RM has detected an NVML/RM version mismatch.
  1  pynvml.NVMLError_DriverNotLoaded: Driver Not Loaded
  1  pynvml.NVMLError_LibraryNotFound: NVML Shared Library Not Found
125  nvidia-container-cli: initialization error: nvml error: driver/library version mismatch: unknown.
125  nvidia-container-cli: initialization error: driver rpc error: timed out: unknown.
128  Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: error running hook #0: error running hook: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\nnvidia-container-cli: initialization error: nvml error: driver not loaded: unknown
 -6  rocBLAS error: Could not initialize Tensile host: No devices found
  1  ggml_cuda_init: failed to initialize ROCm: no ROCm-capable device is detected
  1  Unable to open /dev/kfd read-write: No such file or directory
  1  hsa_init Failed, possibly no supported GPU devices
  1  ROCk module is NOT loaded, possibly no GPU devices
  1  RuntimeError: No HIP GPUs are available
 -6  terminate called after throwing an instance of 'sycl::_V1::exception'\n  what():  No device of requested type 'info::device_type::gpu' available. -1 (PI_ERROR_DEVICE_NOT_FOUND)
 -6  No platforms found\nfind_device: No SYCL devices found
  1  ZE_RESULT_ERROR_UNINITIALIZED
 -6  terminate called after throwing an instance of 'vk::IncompatibleDriverError'\n  what():  vk::createInstance: ErrorIncompatibleDriver
  1  ggml_vulkan: No devices found.
 -6  terminate called after throwing an instance of 'vk::SystemError'\n what(): vk::Device::createShaderModule: ErrorInitializationFailed
  1  VK_ERROR_INCOMPATIBLE_DRIVER
  1  RuntimeError: Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False.
gpu_communication
  1  torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1970, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5\nncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
  1  RuntimeError: NCCL Error 2: unhandled system error
  1  torch.distributed.DistBackendError: NCCL error: ncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000
 -6+ [rank1]:[E] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE, NumelIn=1) ran for 600000 milliseconds before timing out.
  1  custom_all_reduce.cuh:455 'invalid argument'\nFailed: Cuda error custom_all_reduce.cuh
  1  RuntimeError: Gloo connectFullMesh failed with [/pytorch/third_party/gloo] Connection refused
gpu_fault
 -6+ CUDA error: an internal operation failed\n  current device: 0, in function ggml_cuda_op_mul_mat_cublas
 -6  CUDA error: the library was not initialized\n current device: 0, in function cublas_handle at x
  1  RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED
 -6+ :0:rocdevice.cpp:2992: 8453s: Callback: Queue 0x7f aborting with error : HSA_STATUS_ERROR_MEMORY_APERTURE_VIOLATION: The agent attempted to access memory beyond the largest legal address. code: 0x29
 -6+ Callback: Queue 0x7f1 Aborting with error : HSA_STATUS_ERROR_ILLEGAL_INSTRUCTION code 0x2a
 -6+ HW Exception by GPU node-1 (Agent handle: 0x5) reason :GPU Hang
  1+ Native API failed. Native API returns: -997 (Command failed to enqueue/execute)
  1+ level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)
 -6+ vk::Device::waitForFences: ErrorDeviceLost
 -6  ggml_vulkan: Compute pipeline creation failed for mul_mat_f32\nggml_vulkan: vk::Device::createComputePipeline: ErrorUnknown
 -6+ radv/amdgpu: The CS has been cancelled because the context is lost. This context is guilty of a hard recovery.
 -6+ VK_ERROR_DEVICE_LOST
 -6+ CUDA error: unspecified launch failure\n  current device: 0, in function ggml_backend_cuda_synchronize
  1+ RuntimeError: CUDA error: device-side assert triggered
 -6+ CUDA error: misaligned address
 -6+ CUDA error: unknown error\n  current device: 0
 -6  CUDA error: operation not supported\n  current device: 0, in function ggml_cuda_set_device
gpu_memory_loading
  1  ggml_gallocr_reserve_n: failed to allocate CUDA0 buffer of size 17235443712\nllama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers
  1  alloc_tensor_range: failed to allocate CUDA0 buffer of size 4295000000\nllama_model_load: error loading model: unable to allocate CUDA0 buffer
  1  alloc_tensor_range: failed to allocate SYCL0 buffer of size 4295000000
  1  ggml_backend_alloc_ctx_tensors_from_buft: failed to allocate Vulkan0 buffer of size 9000000000
  1  CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`
  1  cuda runtime error (2) : out of memory at /pytorch/aten/src/THC
  1  torch.AcceleratorError: CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call
  1  amdgpu: init_user_pages: Failed to get user pages: -1\nggml_backend_cuda_buffer_type_alloc_buffer: allocating 8192.00 MiB on device 0: hipMalloc failed: out of memory
  1  get_memory_info: [warning] ext_intel_free_memory is not supported (export/set ZES_ENABLE_SYSMAN=1 to support), use total memory as free memory\nNative API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)\nException caught at file:/ggml-sycl.cpp, line:373
  1  Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES) -5 (PI_ERROR_OUT_OF_RESOURCES)
  1  ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY
  1  RuntimeError: XPU out of memory. Tried to allocate 3.00 GiB (GPU 0; 15.91 GiB total capacity
  1  VK_ERROR_OUT_OF_DEVICE_MEMORY
  1  Error: llama runner process has terminated: cudaMalloc failed: out of memory
gpu_memory_running
 -6+ ggml_cuda_compute_forward: MUL_MAT failed\nCUDA error: the resource allocation failed\n  current device: 0, in function cublas_handle at ggml-cuda/common.cuh:854\n  cublasCreate_v2(&cublas_handles[device])
  1+ cuBLAS error 3 at ggml-cuda.cu:7: the resource allocation failed
  1+ RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED
 -6+ HSA_STATUS_ERROR_OUT_OF_RESOURCES: The runtime failed to allocate the necessary resources. This error may also occur when the core runtime library needs to spawn threads
  1+ torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.98 GiB
hardware_fault
  1  pynvml.NVMLError_GpuIsLost: GPU is lost
  1+ torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered
 -6+ CUDA error: the GPU has been reset / CUDA error: GPU is lost
host_memory
  1  graph_reserve: failed to allocate compute buffers\nllama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers
  1  RuntimeError: [enforce fail at alloc_cpu.cpp:115] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1073741824 bytes. Error code 12 (Cannot allocate memory)
  1  RuntimeError: [enforce fail at alloc_cpu.cpp:115] data. DefaultCPUAllocator: not enough memory: you tried to allocate 234 bytes
 -6  terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc
  1  OSError: [Errno 12] Cannot allocate memory
  1  OSError: [Errno 28] No space left on device: '/dev/shm/psm_abc'
  1  RuntimeError: unable to write to file </torch_123_45>: No space left on device (28)
  1  ggml_cuda_host_malloc: failed to allocate 2048.00 MiB of pinned memory: out of memory\nggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9000
  1  llama_model_load: error loading model: mmap failed: Cannot allocate memory
  1  mmap: UR_RESULT_ERROR_OUT_OF_HOST_MEMORY
 -6+ vk::Queue::submit: ErrorOutOfHostMemory
  1  Error: model requires more system memory (9.3 GiB) than is available (4.8 GiB)
illegal_instruction
132  Illegal instruction (core dumped)
internal_check
 -6  warning: failed to mlock 1073741824-byte buffer (after previously locking 0 bytes): Cannot allocate memory\nTry increasing RLIMIT_MEMLOCK ('ulimit -l' as root).\nE: GGML_ASSERT(x) failed
 -6+ GGML_ASSERT(n_tokens <= n_batch) failed
load_timeout
  1  Error: timed out waiting for llama runner to start - progress 0.00 -
missing_library
127  ./llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file: No such file or directory
127  ./llama-server: error while loading shared libraries: libgomp.so.1: cannot open shared object file
  1  ImportError: libcudart.so.11.0: cannot open shared object file: No such file or directory
  1  OSError: libcusparseLt.so.0: cannot open shared object file
  1  ./llama-server: /usr/lib/x86_64-linux-gnu/libstdc++.so.6: version `CXXABI_1.3.15' not found (required by ./libllama.so)
  1  ./llama-server: /lib64/libm.so.6: version `GLIBC_2.29' not found (required by ./llama-server)
127  Error relocating ./llama-server: __isoc23_strtol: symbol not found
127  ./llama-server: relocation error: /lib/libfoo.so: symbol foo version GLIBC_2.34 not defined in file libc.so.6 with link time reference
  1  ImportError: /venv/vllm/_C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEi
  1  OSError: /usr/lib/libcublas.so.12: undefined symbol: cublasLtGetVersion
127  ./llama-server: error while loading shared libraries: libllama.so: cannot enable executable stack as shared object requires: Invalid argument
  1  ImportError: /lib/libc10_cuda.so: ELF load command address/offset not properly aligned
  1  RuntimeError: operator torchvision::nms does not exist
missing_package
  1  ModuleNotFoundError: No module named 'vllm._C'
  1  RuntimeError: Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl.
  1  fatal error: Python.h: No such file or directory
  1  FileNotFoundError: [Errno 2] No such file or directory: 'nvcc'
  1  RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist
  1  FileNotFoundError: [Errno 2] No such file or directory: 'ninja'
mapped_file
135+ Bus error (core dumped)
model_mismatch
  1  llama_model_load: error loading model: missing tensor 'output.weight'
  1  llama_model_load: error loading model: check_tensor_dims: tensor 'token_embd.weight' not found
  1  llama_model_load: error loading model: error loading model hyperparameters: key qwen3moe.expert_count has wrong type u64 but expected type u32
  1  llama_model_load: error loading model: error loading model hyperparameters: key gemma3n.feed_forward_length has wrong array length; expected 30, got 35
  1  llama_model_load: error loading model: error loading model hyperparameters: array length mismatch for key x
  1  llama_model_load: error loading model: error loading model hyperparameters: invalid n_rot: 160, expected 128
  1  clip_init: failed to load model: key clip.has_vision_encoder not found in file
  1  mtmd_init_from_file: error: mismatch between text model (n_embd = 5120) and mmproj (n_embd = 3584)\nhint: you may be using wrong mmproj
  1  clip_model_loader: unable to find tensor v.patch_embd.weight
  1  std::runtime_error: load_tensors: unable to find tensor mm.input_projection.weight
  1  KeyError: 'layers.0.mlp.experts.w13_weight_scale'
  1  ValueError: There is no module or parameter named 'model.visual' in Qwen2ForCausalLM
  1  AssertionError: Attempted to load weight (torch.Size([1024])) into parameter (torch.Size([2048]))
  1  RuntimeError: Error(s) in loading state_dict for X:\n\tsize mismatch for lm_head.weight: copying a param with shape torch.Size([1])
  1  srv load_model: failed to load draft model, 'd.gguf'\nthe target and draft vocabs are not compatible
  1  error: failed to apply lora adapter: failed to load
  1  llama_adapter_lora_init: failed to apply lora adapter: tensor 'blk.0.x' has incorrect shape (hint: maybe wrong base model?)
no_kernel_image
 -6  rocBLAS error: Cannot read /opt/rocm-6.2/lib/llvm/bin/../../../lib/rocblas/library/TensileLibrary.dat: Illegal seek for GPU arch : gfx1036\n List of available TensileLibrary Files :
 -6  rocblas error: could not load library TensileLibrary_lazy_gfx1150.dat
 -6  ggml_cuda_compute_forward: RMS_NORM failed\nROCm error: invalid device function\n  current device: 0, in function ggml_cuda_compute_forward at ggml-cuda.cu:2345
  1  RuntimeError: HIP error: no kernel image is available for execution on the device
  1  torch.AcceleratorError: HIP error: invalid device function
  1  The program was built for 1 devices\nBuild program log for 'Intel(R) Arc(TM) A770 Graphics':\n -11 (PI_ERROR_BUILD_PROGRAM_FAILURE)
  1  AssertionError: Torch not compiled with CUDA enabled
  1  RuntimeError: CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be asynchronously
 -6  ERROR: ggml-cuda was compiled without support for the current GPU architecture.
 -6  /llama.cpp/ggml/src/ggml-cuda/mma.cuh:123: CUDA kernel mul_mat_q has no device code compatible with CUDA arch 500. ggml-cuda.cu was compiled for: 750,800
  1  RuntimeError: NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation.
  1  UserWarning: NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation.\nThe current PyTorch install supports CUDA capabilities sm_50 sm_60
  1  ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'
no_such_file
  1  llama_model_load: error loading model: invalid split file name: x.gguf
  1  llama_model_load: error loading model: illegal split file idx: 1 (file: m-00002-of-00003.gguf), model must be loaded with the first split
  1  llama_model_load: error loading model: invalid split count, given: 0 splits, but expected 3
  1  RuntimeError: Cannot find any model weights with `/models/x`
  1  OSError: Error no file named pytorch_model.bin, model.safetensors, tf_model.h5, model.ckpt.index or flax_model.msgpack found in directory /models/x.
  1  OSError: /models/x does not appear to have a file named config.json. Checkout 'https://huggingface.co//models/x/tree/None' for available files.
  1  ValueError: Invalid repository ID or local directory specified: '/models/y'.\nPlease verify the following requirements:
  1  huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/models/y'. Use `repo_type` argument if needed.
255  singularity: FATAL:   could not open image x.sif: failed to retrieve path for x.sif: lstat x.sif: no such file or directory
not_a_model
  1  gguf_init_from_file_impl: bad GGUF version 50331648 (is it big endian?)
  1  gguf_init_from_file_impl: this GGUF file version 50331648 is extremely large, is there a mismatch between the host and model endianness?
not_executable
127  docker: Error response from daemon: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: "llama-server": executable file not found in $PATH: unknown.
255  exec /app/llama-server: exec format error
  1  WARNING: The requested image's platform (linux/arm64) does not match the detected host platform (linux/amd64/v3)\nexec /usr/bin/python3: exec format error
  1  {"msg":"exec container process `/app/llama-server`: Exec format error","level":"error"}
126  zsh: bad CPU type in executable: ./llama-server
  1  OSError: [Errno 8] Exec format error: './llama-server'
127  sh: 1: llama-server: not found
127  bash: llama-server: command not found
255  FATAL:   exec /app/llama-server failed: no such file or directory
125  Error: short-name "x" did not resolve to an alias and no unqualified-search registries are defined
125  docker: Error response from daemon: pull access denied for x, repository does not exist or may require 'docker login'
125  Unable to find image 'x:latest' locally\ndocker: Error response from daemon: manifest for x:latest not found: manifest unknown
  1  Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?
oom_killed
  1  RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_0': -9}
  1+ ERROR: Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.
  1  Error: llama runner process has terminated: signal: killed
137  slurmstepd: error: Detected 1 oom_kill event in StepId=1. Some of the step tasks have been OOM Killed.
permission_denied
  1  NVML: Insufficient Permissions
125  nvidia-container-cli: initialization error: nvml error: insufficient permissions: unknown
  1  permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock
126  bash: line 1: ./llama-server: Permission denied
  1  Unable to open /dev/kfd read-write: Permission denied\nFailed to get user name to check for video group membership
port_in_use
  1  torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. The server socket has failed to bind to [::]:29500 (errno: 98 - Address already in use)
  1  start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080
  1  OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use
  1  Error: listen tcp 127.0.0.1:11434: bind: address already in use
repository_refused
  1  huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/api/models/x: offline mode is enabled. To disable it, please unset the `HF_HUB_OFFLINE` environment variable.
  1  huggingface_hub.utils._errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub and we cannot find the requested files in the local cache.
  1  requests.exceptions.ConnectionError: (MaxRetryError("HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded with url: /x"))
  1  socket.gaierror: [Errno -3] Temporary failure in name resolution
  1  httpx.ConnectError: [Errno -2] Name or service not known
  1  common_get_hf_file: error: HEAD failed, status: 404
  1  error: failed to get manifest at https://huggingface.co/v2/x/manifests/latest: Could not resolve host name
  1  curl_easy_perform() failed: Could not resolve hostname\ncommon_download_file_single: failed to download
  1  error from HF API, response code: 401, data: {"error":"Invalid username or password."}
  1  get_repo_commit: error: HTTP 429: Too many requests
  1  requests.exceptions.SSLError: HTTPSConnectionPool(host='huggingface.co', port=443): certificate verify failed: self-signed certificate in certificate chain
  1  huggingface_hub.errors.GatedRepoError: 403 Client Error. Cannot access gated repo for url
  1  OSError: You are trying to access a gated repo.\nMake sure to have access to it at https://huggingface.co/meta-llama/x
  1  huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found for url
  1  OSError: meta/x is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'
  1  huggingface_hub.errors.EntryNotFoundError: 404 Client Error. Entry Not Found for url: config.json
  1  huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url
unsupported_architecture
  1  llama_model_load: error loading model: unknown model architecture: 'gpt-oss'
  1  llama_model_load: error loading model: unable to read unknown tokenizer: 'llama-bpe2'
  1  llama_model_load: error loading model: error loading model vocabulary: unknown tokenizer: 'plamo2'
  1  ValueError: The checkpoint you are trying to load has model type `qwen3_next` but Transformers does not recognize this architecture.
  1  ValueError: Model architectures ['Qwen3NextForCausalLM'] are not supported for now. Supported architectures: ...
  1  ValueError: Qwen2_5_VLForConditionalGeneration has no vLLM implementation and the Transformers implementation is not compatible with vLLM.
  1  ImportError: cannot import name 'Qwen3Config' from 'transformers'
  1  ValueError: Unrecognized model in /models/x. Should have a `model_type` key in its config.json, or contain one of the following strings in its name
  1  ValueError: Unrecognized configuration class <class 'x.Config'> for this kind of AutoModel
  1  Error: llama runner process has terminated: error loading model: unknown model architecture: 'mllama'
unsupported_quantisation
  1  gguf_init_from_file_impl: tensor 'blk.0.ffn_down.weight' has invalid ggml type 39. should be in [0, 39)
  1  gguf_init_from_file_impl: GGUFv1 is no longer supported. please use a more up-to-date version
  1  gguf_init_from_file_impl: this GGUF file is version 4 but this software only supports up to version 3
  1  ValueError: Unknown quantization method: mxfp8. Must be one of ['awq', 'gptq']
"""
"""For each cause: the status that the engine ended with, a plus where it was serving, and what it printed."""


def _cases() -> list[tuple[Cause, int, bool, str]]:
    found = []
    for line in LINES.strip().splitlines():
        status, _, log = line.strip().partition(" ")
        if not log:
            cause = Cause(status)
        else:
            found.append(
                (cause, int(status.rstrip("+")), status.endswith("+"), log.strip().replace(r"\n", "\n"))
            )
    return found


@pytest.mark.parametrize(("cause", "status", "was_ready", "log"), _cases())
def test_what_an_engine_printed_shows_its_cause(cause: Cause, status: int, was_ready: bool, log: str) -> None:
    found = diagnose(status, log, was_ready=was_ready)

    assert found.cause is cause, found
    assert "{" not in found.summary
    assert found.remedy


def test_a_row_of_the_table_may_have_a_remedy_of_its_own() -> None:
    offline = diagnose(1, "OfflineModeIsEnabled: Cannot reach https://huggingface.co/api/models/x")
    gated = diagnose(1, "GatedRepoError: 403 Client Error. Cannot access gated repo for url")

    assert "cotenant pull" in offline.remedy
    assert "HF_TOKEN" not in offline.remedy
    assert "HF_TOKEN" in gated.remedy


def test_a_table_is_rows_of_a_cause_a_summary_patterns_and_a_remedy() -> None:
    first, second = parse(r"""
disk_full: it has {0} left
    > Free some,
    > or buy some.
    (\d+) B|# (\w+)  # seen somewhere
    none left
hung: it hangs
    stuck
""")

    assert (first.cause, first.summary, first.remedy) == (
        Cause.DISK_FULL,
        "it has {0} left",
        "Free some, or buy some.",
    )
    assert first.pattern.pattern == r"(\d+) B|# (\w+)|none left"
    assert (second.cause, second.pattern.pattern, second.remedy) == (Cause.HUNG, "stuck", "")
