"""Memory on a card that is a file: what a driver would do for an engine, as `fake_llama_server` needs it.

The file is one that `--gpus` follows (`live: true`), in JSON, which is YAML too. The test's `PaperMachine`
plays the driver: it gives the memory back when the engine's process is gone. No process of the engine's own
could, since all that it starts is killed with it. Standard library only.
"""

import contextlib
import fcntl
import json
import os


def take(path, mib, *, holds_s=0.0, name="fake-llama-server"):
    """Take memory for this process, or return the allocation that failed."""
    with opened(path) as machine:
        card = machine["gpus"][0]
        if int(card["used_mib"]) + mib > int(card["total_mib"]):
            return (
                f"0.01 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating {mib}.00 MiB on device 0: "
                "cudaMalloc failed: out of memory"
            )
        _hold(card, os.getpid(), name, mib)
        _write(f"{path}.kept", {**kept(path), str(os.getpid()): [mib, holds_s]})
    return None


def kept(path):
    """Return what is to be given back, by the process that took it."""
    try:
        with open(f"{path}.kept") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def give_back(path, pid):
    """Give back what an ended process took; return who holds it for its `holds_s` more, if any."""
    heir = None
    with opened(path) as machine:
        card, memory = machine["gpus"][0], kept(path)
        mib, holds_s = memory.pop(str(pid))
        _let_go(card, pid)
        if holds_s:
            heir = os.posix_spawn("/bin/sleep", ["sleep", str(holds_s)], {})
            _hold(card, heir, "heir", mib)
            memory[str(heir)] = [mib, 0]
        _write(f"{path}.kept", memory)
    return heir


def _hold(card, pid, name, mib):
    card["processes"].append({"pid": pid, "name": name, "used_mib": mib})
    card["used_mib"] = int(card["used_mib"]) + mib


def _let_go(card, pid):
    held = [process for process in card["processes"] if process["pid"] == pid]
    card["processes"] = [process for process in card["processes"] if process["pid"] != pid]
    card["used_mib"] = int(card["used_mib"]) - sum(process["used_mib"] for process in held)


@contextlib.contextmanager
def opened(path):
    """Change the file whole, one process at a time: readers see it before or after."""
    with open(f"{path}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(path) as file:
            machine = json.load(file)
        yield machine
        _write(path, machine)


def _write(path, value):
    with open(f"{path}.part", "w") as file:
        json.dump(value, file)
    os.replace(f"{path}.part", path)
