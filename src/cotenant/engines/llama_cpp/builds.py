"""Finds the programs of this machine that run llama.cpp, and the GPUs that each sees."""

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Final

from cotenant.domain.devices import Device, DeviceKind, Inventory
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineBuild, EngineDevice, EngineForm, FoundBuilds
from cotenant.domain.errors import EngineError, EngineLacksDevice, EngineMissing
from cotenant.domain.units import MIB
from cotenant.domain.vendors import Vendor
from cotenant.engines.llama_cpp.server_flags import ServerFlags
from cotenant.engines.process.process import scrubbed
from cotenant.programs.run import Finished, run_program

SERVER_NAME: Final = "llama-server"
NO_RPC_HINT: Final = (
    "Build llama.cpp with -DGGML_RPC=ON, the same on each machine, and give its llama-server; "
    "ggml-rpc-server has to be beside it."
)
_RPC_SERVERS: Final = ("ggml-rpc-server", "rpc-server")
"""Its name, and the one that it had before 2026."""

_ASK_WITHIN_S: Final = 60.0
"""A first CUDA initialisation on eight GPUs takes seconds; a program that never answers is not an engine."""
_DEVICE_LINE: Final = re.compile(r"^\s+(\w+): (.+) \((\d+) MiB, (\d+) MiB free\)$", re.MULTILINE)
VERSION_LINE: Final = re.compile(r"^version: (.+)$", re.MULTILINE)
_VENDOR: Final = re.compile(r"^(?:nvidia|amd|intel|geforce|radeon|\(tm\)|\(r\)|\s)+", re.IGNORECASE)
_MISSING_LIBRARY: Final = re.compile(r"(lib[\w.+-]+): cannot open shared object file")


@dataclass(frozen=True, slots=True)
class Builds:
    """The builds found, in order of preference; a missing one is None."""

    configured: EngineBuild | None
    embedded: EngineBuild | None
    on_path: EngineBuild | None

    @property
    def all(self) -> tuple[EngineBuild, ...]:
        """Every build found, usable or not."""
        return tuple(b for b in (self.configured, self.embedded, self.on_path) if b is not None)


def discover(configured: Path | None = None) -> Builds:
    """Query every program for its devices, once per process unless its file changes.

    Raises EngineMissing if the configured program does not exist.
    """
    on_path = shutil.which(SERVER_NAME)
    found = None if configured is None else shutil.which(configured)
    if configured is not None and found is None:
        raise EngineMissing(
            f"{configured} is not a program that can be run",
            hint="Correct --llama-server, or leave it out.",
        )
    if found is not None and on_path is not None and Path(on_path).samefile(found):
        on_path = None
    first, last = (None if each is None else server_build(Path(each)) for each in (found, on_path))
    return Builds(first, embedded_build(), last)


def choose(builds: Builds, needed: Sequence[Device], *, cuda_version: str | None = None) -> EngineBuild:
    """Pick the build for GPUs `needed`, or for host RAM if there are none.

    A configured program is used or refused, never skipped. Without one: the embedded engine if it sees the
    GPUs, then the server on PATH if it does. Raises EngineLacksDevice instead of using the CPU, and
    EngineMissing if no engine runs at all.
    """
    candidates = (builds.configured,) if builds.configured else (builds.embedded, builds.on_path)
    usable = [build for build in candidates if build is not None and build.problem is None]
    if not usable:
        problems = [f"{build.form}: {build.problem}" for build in candidates if build is not None]
        raise EngineMissing(
            f"no engine can run on this machine ({'; '.join(problems) or 'none is installed'})",
            hint="Run `cotenant engine install cpu`, or give a program with --llama-server.",
        )
    for build in usable:
        if lists_all(build, needed):
            return build
    seen = "; ".join(
        f"{build.form} {build.version} sees "
        + (", ".join(device.label for device in build.devices) or "no GPU")
        for build in usable
    )
    raise EngineLacksDevice(
        f"no engine of this machine can use {', '.join(device.label for device in needed)}: {seen}",
        hint=_install_hint(needed, cuda_version),
    )


def survey(configured: Path | None, inventory: Inventory) -> FoundBuilds:
    """Find the builds of this machine, and the one that would run models on all its GPUs.

    Raises EngineMissing if the configured program does not exist.
    """
    builds, gpus = discover(configured), [d for d in inventory.devices if d.kind is not DeviceKind.HOST]
    try:
        chosen = choose(builds, gpus, cuda_version=inventory.cuda_version)
    except EngineError as error:
        return FoundBuilds(builds.all, bool(gpus), refusal=error.message, hint=error.hint)
    return FoundBuilds(builds.all, bool(gpus), chosen=builds.all.index(chosen))


def lists_all(build: EngineBuild, needed: Sequence[Device]) -> bool:
    """Whether the build lists a GPU for each device; compared by vendor, else by name.

    Engines do not list UUIDs, and a MIG slice has the name of its card.
    """
    listed = list(build.devices)
    for device in needed:
        match = next((seen for seen in listed if _matches(seen, device)), None)
        if match is None:
            return False
        listed.remove(match)
    return True


def choose_for_rpc(builds: Builds, needed: Sequence[Device]) -> EngineBuild:
    """Pick the build whose llama-server uses GPUs of other machines, or which lends GPUs `needed` to one.

    Raises EngineMissing.
    """
    candidates = (builds.configured,) if builds.configured else builds.all
    for build in candidates:
        if build.rpc_server is not None and lists_all(build, needed):
            return build
    seen = ", ".join(f"{build.form} {build.version}" for build in candidates) or "none"
    raise EngineMissing(f"no llama.cpp here can share a model with other machines: {seen}", hint=NO_RPC_HINT)


def server_flags(build: EngineBuild) -> ServerFlags:
    """Return the options in a llama-server's `--help`, read once per file. Raises EngineMissing."""
    flags = _ask_flags(build.program, _version_of(Path(build.program)))
    if not flags.known:
        raise EngineMissing(
            f"{build.program} --help lists no options", hint="Is it a llama-server? Check --llama-server."
        )
    return flags


def server_build(program: Path) -> EngineBuild:
    """Describe a llama-server; the result says if it cannot be used."""
    return _ask_server(str(program), _version_of(program))


def embedded_build() -> EngineBuild | None:
    """Describe the xllamacpp of this interpreter; None if it is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    library = next(iter(sorted(folder.glob("*.so"))), folder)
    return _ask_embedded(str(library), _version_of(library))


def _version_of(file: Path) -> tuple[int, int]:
    """Return what changes with a file: a program is asked once per version of its file."""
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


def _matches(seen: EngineDevice, device: Device) -> bool:
    if device.vendor is not None and seen.backend == device.vendor.traits.backend:
        return True
    first, second = (_VENDOR.sub("", name).strip().lower() for name in (seen.description, device.name))
    return first == second


def _install_hint(needed: Sequence[Device], cuda_version: str | None) -> str:
    vendor = next((device.vendor for device in needed if device.vendor is not None), None)
    flavour = "vulkan" if vendor is None else vendor.traits.backend
    driver = f" (this driver speaks CUDA {cuda_version})" if vendor is Vendor.NVIDIA and cuda_version else ""
    return f"Run `cotenant engine install {flavour}`{driver}, or give a program with --llama-server."


@cache
def _ask_flags(program: str, file_version: tuple[int, int]) -> ServerFlags:
    return ServerFlags.parse(_run([program, "--help"]).output)


@cache
def _ask_server(program: str, file_version: tuple[int, int]) -> EngineBuild:
    build = partial(EngineBuild, EngineKind.LLAMA_CPP, EngineForm.SERVER, program)
    listed = _run([program, "--list-devices"])
    version = VERSION_LINE.search(_run([program, "--version"]).output)
    if listed.problem is not None or version is None:
        return build(version="unknown", problem=listed.problem or "it does not report its version")
    devices = tuple(
        EngineDevice(name, description, int(total) * MIB, int(free) * MIB)
        for name, description, total, free in _DEVICE_LINE.findall(listed.output)
    )
    return build(version=version[1], devices=devices, rpc_server=_rpc_server(program, file_version))


def _rpc_server(program: str, file_version: tuple[int, int]) -> str | None:
    """Return the program beside a llama-server that lends GPUs to one, if that can use such GPUs."""
    folder = Path(program).resolve().parent
    found = next((each for name in _RPC_SERVERS if (each := folder / name).is_file()), None)
    return str(found) if found and "--rpc" in _ask_flags(program, file_version).known else None


@cache
def _ask_embedded(library: str, file_version: tuple[int, int]) -> EngineBuild:
    build = partial(EngineBuild, EngineKind.LLAMA_CPP, EngineForm.EMBEDDED, sys.executable)
    answer = _run([sys.executable, "-P", "-m", "cotenant.engines.llama_cpp.list_devices"])
    if answer.problem is not None:
        return build(version="unknown", problem=answer.problem)
    # Backends also print to this output while they start.
    result = json.loads(next(line for line in answer.output.splitlines() if line.startswith("{")))
    return build(
        version=result["version"], devices=tuple(EngineDevice(**device) for device in result["devices"])
    )


def _run(command: list[str]) -> Finished:
    done = run_program(command, _ASK_WITHIN_S, env=scrubbed(os.environ))
    if not done.status:
        return done
    if missing := _MISSING_LIBRARY.search(done.output):
        hint = " (install the package libgomp1)" if missing[1].startswith("libgomp") else ""
        return replace(done, problem=f"the library {missing[1]} is missing{hint}")
    reason = done.reason if done.output.strip() else "it printed nothing"
    return replace(done, problem=f"it fails with status {done.status}: {reason}")
