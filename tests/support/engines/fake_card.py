"""Memory on a card that is a file: what a driver would do for an engine, as `fake_llama_server` needs it.

The file is one that `--gpus` follows (`live: true`), in JSON, which is YAML too. Beside the engine lives a
keeper, a process in a session of its own, that gives the memory back when the engine's process is gone; for
`holds_s` more it holds it itself, as a child does that nobody thought of. Standard library only.
"""

import contextlib
import fcntl
import json
import os
import select
import time


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
    _keep(path, mib, holds_s)
    return None


def _keep(path, mib, holds_s):
    engine = os.getpid()
    watched = os.pidfd_open(engine)
    if os.fork():
        os.close(watched)
        return
    os.setsid()
    os.closerange(0, 3)
    select.select([watched], [], [])
    with contextlib.suppress(FileNotFoundError):
        if holds_s:
            with opened(path) as machine:
                _let_go(machine["gpus"][0], engine)
                _hold(machine["gpus"][0], os.getpid(), "heir", mib)
            until = time.monotonic() + holds_s
            while time.monotonic() < until and os.path.exists(path):
                time.sleep(0.02)
        with opened(path) as machine:
            _let_go(machine["gpus"][0], os.getpid() if holds_s else engine)
    os._exit(0)


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
        with open(f"{path}.part", "w") as file:
            json.dump(machine, file)
        os.replace(f"{path}.part", path)
