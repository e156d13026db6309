"""Specific signatures: lines with one meaning, so that they count before all others.

The form of the table is that of `signatures.parse`; a comment says where the line was seen.
"""

from typing import Final

from cotenant.engines.diagnosis.signatures import Signature, parse

SPECIFIC: Final[tuple[Signature, ...]] = parse(r"""
bad_argument: it takes K and V caches of one type only, not {0} and {1}
    does not support different K \((\w+)\) and V \((\w+)\) types  # llama.cpp: llama-context.cpp
bad_argument: its {0} cache cannot be of type {1}: the size of a head is no multiple of {2}
    ([KV]) cache type (\w+) with block size (\d+) does not divide  # llama.cpp: llama-context.cpp
bad_argument: a quantised V cache needs flash attention
    (?:quantized V cache|V cache quantization) requires flash_attn  # llama.cpp: llama-context.cpp
bad_argument: its {0} attention heads cannot be divided over {1} GPUs
    attention heads \((\d+)\) must be divisible by tensor.parallel.size \((\d+)\)  # vLLM: config
bad_argument: it cannot be divided over {0} GPUs
    \d+\)? is not divisible by (?:tensor.parallel.size |tp_size )?\(?(\d+)  # vLLM: distributed/utils.py
    [Tt]ensor.parallel.size \(?(\d+)\)? (?:must divide|exceeds|is larger)
    must be divisible by tp_size\D{0,3}(\d+)  # SGLang
    [Ww]orld size \((\d+)\) is larger than the number of available GPUs
bad_argument: it is to run on more GPUs than there are
    number of required GPUs exceeds the total number of available  # vLLM: ray_utils.py
    --tensor-split has \d+ values, maximum is  # llama.cpp: common/arg.cpp
bad_argument: its quantised weights cannot be divided over so many GPUs
    is not divisible by weight quantization block|not aligned with the quantized weight shape  # vLLM: fp8.py
bad_argument: the model brings code of its own, which the engine does not run without `--trust-remote-code`
    trust_remote_code=True|custom code which must be executed  # transformers: dynamic_module_utils.py
bad_argument: one of its arguments is not a number
    what\(\):\s{1,4}sto(?:i|l|ul|ll|ull|f|d)\b  # llama.cpp: std::stoi
bad_argument: it has no argument of that name any longer
    error: the argument has been removed  # llama.cpp: common/arg.cpp
bad_argument: its argument {0} is missing
    error: (--?[\w-]+) is required|the following arguments are required: (\S+)
bad_argument: its number format {0} does not go with its quantisation
    (torch\.\w+) is not supported for quantization method  # vLLM: config
bad_argument: its chat template is not one that it can read
    > Give it another by `args`: `--jinja`, `--chat-template NAME` or `--chat-template-file FILE`.
    this custom template is not supported|chat template parsing error  # llama.cpp: common/arg.cpp, server.cpp
    jinja2\.exceptions\.TemplateSyntaxError  # vLLM
bad_argument: it cannot listen at its address
    [Cc]annot assign requested address  # bind(2)
missing_library: its backend {0} cannot be loaded
    load_backend: failed to load (\S+(?:cuda|hip|vulkan|sycl|musa)\S*)  # llama.cpp: ggml-backend-reg.cpp
device_missing: its build finds no device {0}
    (?:unknown|invalid) device: (\S+)  # llama.cpp: common/arg.cpp
device_missing: it finds fewer GPUs than it is to use
    invalid device ordinal|hipErrorInvalidDevice\b|cudaErrorInvalidDevice\b|CUDA_ERROR_INVALID_DEVICE  # CUDA
device_missing: docker has no runtime {0}
    (?i:unknown or invalid runtime name: |unknown runtime specified )(\w+)  # moby
device_missing: docker finds no description of GPUs for containers
    failed to discover GPU vendor from CDI|stat (nvidia\.com/gpu=\S+): no such file  # moby, old podman
device_missing: {0}, which its container needs, does not exist
    (?:l?stat|mount) [`"']?(/dev/(?:nvidia|kfd|dri/)[^\s:`"']*)[`"']?: (?i:no such file)  # crun
    adding custom device [`"'](/dev/\S+)[`"']: no such file  # moby
device_missing: NVIDIA's hook could not give its container a GPU
    nvidia-container-cli: (?:mount|container|ldcache) error  # libnvidia-container
    error (?:executing|running) hook [`"']?\S*nvidia  # crun, runc
    no adapters were found  # libnvidia-container on WSL
model_mismatch: the tensor {0} of the model file is not as its build expects
    tensor '([^'\n]*)' has (?:wrong (?:shape|type)|incorrect shape)  # llama.cpp: llama-model-loader
model_mismatch: the model file lacks the tensor {0}
    tensor '([^'\n]*)' not found|unable to find tensor (\S+)  # llama.cpp: llama-model-loader, clip.cpp
model_mismatch: the model file lacks, or has otherwise, the key {0}, which its build wants
    key not found in model: (\S+)|key (\S+) has wrong (?:type|array length)  # llama.cpp: the loader
    key (\S+) not found in file|array length mismatch for key (\S+)  # llama.cpp: clip.cpp
    error loading model hyperparameters: invalid (\w+):
model_mismatch: the projector is of another model
    mismatch between text model \(n_embd = \d+\) and mmproj  # llama.cpp: mtmd.cpp
model_mismatch: the draft model is of another family
    the target and draft (?:vocabs|models) are not compatible|draft model .{0,60}must have the same
model_mismatch: the adapter does not fit the model
    failed to apply lora adapter|LoRA rank \d+ is greater than max_lora_rank  # llama.cpp, vLLM
model_mismatch: the weights {0} do not fit what its build expects
    size mismatch for (\S{1,120}):|no module or parameter named '?([\w.]+)  # PyTorch, vLLM: weight loading
    cannot find (tokenizer \w+) in model file  # llama.cpp: llama-vocab.cpp
    Attempted to load weight \((.{1,60})\) into parameter
    KeyError: '((?:model\.)?layers\.\d+\.[\w.]+)'  # vLLM
unsupported_architecture: its build does not know the {0} {1}
    un(?:known|supported) (pre-tokenizer|tokenizer|projector)(?: type)?:? '?([\w.-]+)  # llama-vocab.cpp
    unable to read unknown (tokenizer): '?([\w.-]+)
unsupported_architecture: its build does not know the tokenizer {0}
    Tokenizer class (\w+) does not exist  # transformers: tokenization_auto.py
unsupported_architecture: its build does not know {0}
    (\w+) has no vLLM implementation|Unrecognized configuration class <class '([^'\n]{1,200})'  # vLLM
    cannot import name '(\w+)' from 'transformers  # vLLM with another release of transformers
unsupported_architecture: its folder names no architecture that its build knows
    Should have a `model_type` key in its config.json  # transformers: configuration_auto.py
unsupported_quantisation: the model file is of a version that its build does not read
    GGUFv1 is no longer supported|this GGUF file is version \d+ but  # llama.cpp: gguf.cpp
not_a_model: the model file is damaged, or of a machine with another byte order
    bad GGUF version|GGUF file version \d+ is extremely large  # llama.cpp: gguf.cpp
no_such_file: its model is one part of several, and not the first
    > Name the first part (`…-00001-of-…`), with the others in the same folder.
    illegal split file idx: \d+|invalid split file name|invalid split count  # llama.cpp: the loader
no_such_file: the folder {0} has no config.json
    (/\S{1,400}) does not appear to have a file named config\.json  # transformers: hub.py
no_such_file: its folder has no weights
    no file named \S{1,60}\.(?:bin|safetensors)  # transformers: modeling_utils.py
no_such_file: there is no image {0}
    could not open image (\S+):  # Apptainer
corrupt_model: the model file is truncated or damaged
    Error while deserializing|Unable to load weights from pytorch checkpoint  # safetensors, transformers
driver_too_old: the NVIDIA driver is too old for its image, which asks for {0}
    unsatisfied condition: (\w+[<>=]+[\d.]+)  # libnvidia-container
permission_denied: it may not speak with the GPU's driver
    > Let its user open the card's devices (`ls -l /dev/nvidia* /dev/kfd /dev/dri`).
    > Those of AMD are for the groups `render` and `video`.
    (?i:NVML(?: error)?: insufficient permissions)|/dev/kfd read-write: Permission denied
    could not open file /dev/dri/\S+: Permission denied  # libdrm
permission_denied: it may not speak with docker's daemon
    > Put its user into the group of docker's socket: `ls -l /var/run/docker.sock`.
    permission denied while trying to connect to the (?i:docker)  # docker
driver_unavailable: the driver gives it no GPU
    Failed to infer device type|No (?:CUDA|HIP|XPU) GPUs are available  # vLLM: config/device.py; torch/cuda
    no ROCm-capable device|hipErrorNoDevice|[Uu]nable to open /dev/kfd|ROCk module is NOT loaded  # ROCm
    hsa_init [Ff]ailed|Could not initialize Tensile host: No devices found  # ROCr, rocBLAS
    NVML: (?:Unknown Error|Driver Not Loaded|GPU access blocked)|nvml error: |driver rpc error  # NVML
    NVMLError_(?:LibRmVersionMismatch|DriverNotLoaded|LibraryNotFound|Unknown|NoPermission)  # pynvml
    forward compatibility was attempted|couldn't communicate with the NVIDIA driver  # CUDA, nvidia-smi
    CUDA unknown error - this may be|torch\.cuda\.is_available\(\) is False  # PyTorch
    No device of requested type .{0,60}available|No SYCL devices found|ZE_RESULT_ERROR_UNINITIALIZED  # SYCL
    ERROR_INCOMPATIBLE_DRIVER|ErrorIncompatibleDriver|IncompatibleDriverError  # Vulkan
    ErrorInitializationFailed|VK_ERROR_INITIALIZATION_FAILED
card_too_old: its GPU, or its driver, lacks what its build needs
    ErrorExtensionNotPresent|ErrorFeatureNotPresent|does not support 16-bit storage  # Vulkan
    required aspect fp64 is not supported|UR_RESULT_ERROR_UNSUPPORTED_FEATURE  # SYCL
missing_library: it needs {0}, which this machine's libraries are too old for
    > Use a build for this distribution, or an image: `cotenant engine install`.
    version `((?:GLIBC|GLIBCXX|CXXABI|GCC|LIBGOMP|GOMP)_[\d.]+)' not found  # ld.so
    symbol \S{1,200} version (\w+_[\d.]+) not defined in file
missing_library: its libraries are not of one version: the symbol {0} is missing
    > Install it anew: all its libraries must be of one release.
    undefined symbol: (\w{1,200})|Error relocating \S{1,400}: (\w{1,200}): symbol not found  # ld.so, musl
    operator (\w+::\w+) does not exist  # PyTorch
missing_library: the library {0} is damaged or of another kind of machine
    (lib[\w.+-]{1,80}): (?:file too short|invalid ELF header|wrong ELF class)
    (lib[\w.+-]{1,80}): (?:ELF load command|cannot enable executable stack|failed to map segment)
missing_package: the compiler or header {0} is missing
    > Install it (`gcc`, `python3-dev`, NVIDIA's CUDA toolkit, `ninja`), or use the engine's image.
    Failed to find (C compiler)|(Python\.h): No such file|Could not find (nvcc)  # Triton, FlashInfer
    No such file or directory: '(?:\S{0,100}/)?(nvcc|ninja|gcc|cc|ptxas|g\+\+)'
not_executable: its program is for another kind of machine
    [Ee]xec format error|cannot execute binary file|bad CPU type in executable  # execve(2)
not_executable: there is no program {0}
    (?:sh|bash): (?:line )?(?:\d+: )?(\S{1,200}): (?:command )?not found  # dash, bash
    FATAL:\s{1,4}exec (\S{1,200}) failed: no such file  # Apptainer
not_executable: its image cannot be fetched
    > Correct `image:`, and fetch it by hand to see more: `podman pull IMAGE` or `docker pull IMAGE`.
    pull access denied for|manifest unknown|did not resolve to an alias|manifest for \S{1,200} not found
not_executable: docker's daemon does not answer
    > Start it: `sudo systemctl start docker`; its socket is for the group `docker`.
    Cannot connect to the Docker daemon  # docker
no_kernel_image: its build has no code for this GPU
    hipErrorNoBinaryForGpu|Unable to find code object|device kernel image is invalid  # HIP, CUDA
    Cannot read \S{0,200}TensileLibrary|could not load library TensileLibrary  # rocBLAS
    hipErrorInvalidDeviceFunction|invalid device function|BUILD_PROGRAM_FAILURE  # HIP, SYCL
    compiled without support for the current GPU arch|has no device code compatible with CUDA arch
    not compatible with the current PyTorch installation|Torch not compiled with CUDA  # PyTorch
    Value 'sm_\w+' is not defined for option  # ptxas
gpu_memory_loading: its GPU is out of memory
    (?:CUBLAS|CUDNN|HIPBLAS|CUSOLVER)_STATUS_ALLOC_FAILED|rocblas_status_memory_error  # cuBLAS, rocBLAS
    the resource allocation failed|cuda runtime error \(2\)|XPU out of memory  # cuBLAS, PyTorch
    hipErrorOutOfMemory|ERROR_OUT_OF_(?:DEVICE_MEMORY|RESOURCES)|OutOfDeviceMemoryError  # HIP, SYCL, Vulkan
    buffer size exceeds device memory  # llama.cpp
host_memory: its container has too little shared memory
    > Give its container more: `--shm-size=8g`, or `--ipc=host`.
    insufficient shared memory|out of shared memory|shared memory limit  # PyTorch: DataLoader
    No space left on device: '/dev/shm|unable to write to file </torch_
host_memory: it is out of memory
    OUT_OF_HOST_MEMORY|ErrorOutOfHostMemory|DefaultCPUAllocator: not enough memory  # SYCL, Vulkan, PyTorch
gpu_fault: its GPU was lost: {0}
    (Memory access fault by GPU|ErrorDeviceLost|DeviceLostError|ERROR_DEVICE_LOST|GPU Hang)  # ROCr, Vulkan
    (HSA_STATUS_ERROR_(?:EXCEPTION|MEMORY_APERTURE_VIOLATION|ILLEGAL_INSTRUCTION|MEMORY_FAULT|INVALID_ISA))
    (context is lost)\. This context is|Native API returns: -997 \((Command failed)
card_too_old: its GPU is too old for one of its kernels
    (?:FlashAttention|[Ff]lash attention \d)(?: forward)? only support\w* (?:on )?(?:Ampere|Hopper)
    Error: \w{1,40} is only supported on (?:Hopper|Blackwell|Ampere)|only supports devices of CUDA Capability
    only supported on CUDA devices with compute capability|type fp8e\w+ not supported in this architecture
    requires? (?:GPUs? with |a GPU with )?compute capability|requires \.target sm_
    out of resource: shared memory, Required  # Triton
gpu_communication: two of its processes are on one GPU
    > Give it as many GPUs as its `tensor_parallel` says.
    Duplicate GPU detected  # NCCL
repository_refused: the model hub cannot be reached, and its files are not here
    > Fetch the model first (`cotenant pull`), or let the engine reach the hub; `HF_HUB_OFFLINE` forbids it.
    couldn't connect to 'https?://|outgoing traffic has been disabled|OfflineModeIsEnabled  # huggingface_hub
    LocalEntryNotFoundError|cannot find the requested files in the (?:disk|local) cache
    Failed to resolve 'huggingface|HTTPSConnectionPool\(host='huggingface\.co'|Could not resolve host ?name
repository_refused: the model hub does not give out its model
    HEAD failed, status: 4\d\d|error from HF API, response code: 4\d\d|error: HTTP 4\d\d  # llama.cpp: common/
    4\d\d Client Error|EntryNotFoundError  # huggingface_hub
descriptors: it may open no more files
    Too many open files|\bEMFILE\b  # open(2)
""")
"""Signatures of lines with one meaning."""
