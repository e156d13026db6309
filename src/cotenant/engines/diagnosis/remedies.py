"""What to do about each cause. Commands that need root are shown, never run."""

from typing import Final

from cotenant.domain.exit_causes import Cause

_NEWEST: Final = "`cotenant engine install --newest`"
"""Without the word, it installs a version that is known and may be the present one."""

REMEDIES: Final[dict[Cause, str]] = {
    Cause.DEVICE_BUSY: (
        "If `nvidia-smi -q -d COMPUTE` shows Exclusive_Process, either share the card through MPS "
        "(`devices.mps: auto`), or have root admit any number of processes: "
        "`sudo nvidia-smi -i GPU -c DEFAULT`. "
        "Else end what holds the card: `cotenant gpus` lists it."
    ),
    Cause.GPU_MEMORY_LOADING: (
        "See `cotenant gpus` for who holds memory; a smaller context, fewer slots or a quantised KV cache "
        "need less, a larger `devices.reserve_mib` plans with more caution."
    ),
    Cause.GPU_MEMORY_RUNNING: (
        "Something took memory after the model was loaded: see `cotenant gpus`, and raise "
        "`devices.reserve_mib`."
    ),
    Cause.CONTEXT_TOO_LARGE: (
        "Give the model a smaller `ctx`, fewer `parallel` slots, or a quantised KV cache (`cache_type_k`, "
        "`cache_type_v`)."
    ),
    Cause.HOST_MEMORY: "Free RAM, put more layers on a GPU, or choose a smaller model or context.",
    Cause.OOM_KILLED: (
        "Free RAM or raise the memory limit of the service; `sudo dmesg | grep -i 'killed process'` shows "
        "what the kernel killed."
    ),
    Cause.NO_SUCH_FILE: "Correct the model's path.",
    Cause.PERMISSION_DENIED: "Let the daemon's user read the file and enter its folders: `namei -l FILE`.",
    Cause.DISK_FULL: "Free space: `df -h` shows where.",
    Cause.NOT_A_MODEL: "Download it again, or correct the path: the first four bytes must be `GGUF`.",
    Cause.CORRUPT_MODEL: "Download it again and compare its size or checksum.",
    Cause.MODEL_MISMATCH: f"A newer engine may know it ({_NEWEST}); else convert it again.",
    Cause.UNSUPPORTED_ARCHITECTURE: (
        f"Install a newer engine: {_NEWEST}, or for vLLM `pip install --upgrade vllm`."
    ),
    Cause.UNSUPPORTED_QUANTISATION: (
        f"Install a newer engine ({_NEWEST}), or take the model in another quantisation."
    ),
    Cause.REPOSITORY_REFUSED: (
        "Check the repository's name, accept its terms on the hub, and give the engine a token in its `env` "
        "(HF_TOKEN)."
    ),
    Cause.DRIVER_TOO_OLD: (
        "Update the NVIDIA driver (root, then reboot), or install an engine for the CUDA version that "
        "`cotenant gpus` shows: `cotenant engine install cuda`."
    ),
    Cause.DRIVER_UNAVAILABLE: "`cotenant doctor` looks for the reason; reboot after an update of the driver.",
    Cause.NO_KERNEL_IMAGE: (
        "Install an engine that is built for this card's compute capability (`cotenant gpus` shows it): "
        "`cotenant engine install`."
    ),
    Cause.CARD_TOO_OLD: "Run it in another number format (vLLM: `--dtype half`), or on a newer card.",
    Cause.MPS_UNREACHABLE: (
        "`cotenant mps status` shows whether its control daemon runs; one of another user cannot serve it."
    ),
    Cause.GPU_COMMUNICATION: (
        "Keep the model on one card (`gpus`), or turn peer access off in its `env` (NCCL_P2P_DISABLE=1); the "
        "machine's IOMMU often prevents it."
    ),
    Cause.HARDWARE_FAULT: (
        "The card needs a reset or a reboot: `sudo nvidia-smi -i GPU -r`. If it happens again, check power, "
        "temperature and seat of the card, and replace it; `sudo dmesg | grep Xid` has the record."
    ),
    Cause.GPU_FAULT: (
        "The next request starts it again. If it happens again, try another engine build, and look at "
        "`sudo dmesg | grep Xid`."
    ),
    Cause.BAD_ARGUMENT: "Correct the model's `args` or recipe; the engine's `--help` lists what it takes.",
    Cause.PORT_IN_USE: "Find who listens there: `ss -ltnp`. The next attempt takes another port.",
    Cause.MISSING_LIBRARY: (
        "Install the package that has it (libgomp.so.1: libgomp1; libcudart, libcublas: NVIDIA's CUDA "
        "runtime; libcuda.so.1: the driver)."
    ),
    Cause.MISSING_PACKAGE: "Install it into the environment of the engine.",
    Cause.NOT_EXECUTABLE: (
        "Check --llama-server or the model's `command`, and the file's execute permission; of an image, its "
        "PATH."
    ),
    Cause.ILLEGAL_INSTRUCTION: "Install a build for this processor: `cotenant engine install`.",
    Cause.INTERNAL_CHECK: "Check the model file and its `args`; else report it to the engine's project.",
    Cause.MAPPED_FILE: (
        "Check the model file and the disk; an engine in a container may need a larger /dev/shm (--shm-size)."
    ),
    Cause.CRASHED: "Check the model file and the disk; else try another engine build.",
    Cause.KILLED: "Another process or a user ended it: look for a service manager or a limit.",
    Cause.ENGINE_MISSING: "Run `cotenant engine install`.",
    Cause.DEVICE_MISSING: (
        "See `cotenant gpus` and `cotenant engine list`. In containers, podman finds cards by CDI: "
        "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`, again after each driver update; "
        "docker by NVIDIA's Container Toolkit: `sudo nvidia-ctk runtime configure --runtime=docker`, then "
        "restart docker."
    ),
    Cause.UNTRUSTED_SERVER: (
        "Name your certificate authority by SSL_CERT_FILE in Cotenant's environment; `address:` must have "
        "a name, or IP address, that the certificate has."
    ),
    Cause.KEY_REFUSED: "Correct `api_key:` or the variable that `api_key_env:` names.",
    Cause.DESCRIPTORS: "Raise the limit of open files: `ulimit -n`, or `LimitNOFILE=` of the service.",
    Cause.LOAD_TIMEOUT: "Give it more time with --load-timeout, or look at the disk's speed.",
    Cause.HUNG: (
        "The next request starts it again. If it happens again, look at `sudo dmesg | grep -i xid`, and try "
        "another engine build."
    ),
    Cause.NODE_LOST: (
        "Requests without an answer yet are asked again elsewhere. `cotenant nodes list` shows how long it "
        "has been silent; its engines end by themselves when their lease is over, or are adopted when it is "
        "back."
    ),
    Cause.UNKNOWN: "",
}
"""One entry per cause; a test checks that."""
