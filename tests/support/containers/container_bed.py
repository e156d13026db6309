"""A podman of the tests' own: its storage in a folder that goes with it, an image made from nothing, two
stand-in GPUs by CDI (character devices that are /dev/null).

Its containers end by themselves after ten minutes, should the tests be killed.
"""

import atexit
import fcntl
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian

IMAGE = "localhost/fake-engine:1"
IDLE = ["sh", "-c", "trap 'exit 0' TERM; sleep 600 & wait"]
GPU_UUIDS = ("GPU-5a7d0000-0000-0000-0000-000000000000", "GPU-5a7d0000-0000-0000-0000-000000000001")

_PACKAGES = ["podman", "runc", "netavark", "aardvark-dns", "iptables", "catatonit", "busybox-static"]
_PROGRAMS = ("podman", "runc", "busybox")
_APPLETS = ("sh", "sleep", "httpd", "cat", "ls", "env", "touch", "echo", "kill", "test", "rm")
_CDI_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
_CDI = _CDI_FOLDERS[1] / "cotenant-tests.json"
_CDI_LOCK = Path(tempfile.gettempdir()) / "cotenant-tests-cdi.lock"


class NoContainers(Exception):
    """Containers cannot be run here, with the reason."""


@dataclass(frozen=True)
class ContainerBed:
    """Where containers of these tests live; `environment` makes podman and podman-compose work there."""

    folder: Path
    environment: dict[str, str]

    def podman(self, *arguments: str, check: bool = True) -> str:
        ran = subprocess.run(
            ["podman", *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and ran.returncode != 0:
            raise AssertionError(f"podman {' '.join(arguments)}: {ran.stderr}")
        return ran.stdout.strip()


@functools.cache
def container_bed() -> ContainerBed | str:
    """Return the bed of this run of the tests, installed and made if need be, or why there is none."""
    try:
        return _made()
    except (NoContainers, AssertionError, OSError, subprocess.SubprocessError) as error:
        return f"Containers cannot be tested here: {error}"


def _made() -> ContainerBed:
    if os.geteuid() != 0:
        raise NoContainers("only root can run them as these tests do")
    if missing := _missing():
        _install(missing)
    compose = Path(sys.executable).with_name("podman-compose")
    if not compose.exists() and shutil.which("podman-compose") is None:
        raise NoContainers("podman-compose is not installed (it is in the dependency group `test`)")
    _stand_in_gpus()
    folder = Path(tempfile.mkdtemp(prefix="cotenant-podman-"))
    _configure(folder)
    bed = ContainerBed(
        folder,
        {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "PATH": f"{compose.parent}{os.pathsep}{os.environ['PATH']}",
        },
    )
    atexit.register(_tear_down, bed)
    _make_image(bed)
    return bed


def _missing() -> list[str]:
    return [name for name in _PROGRAMS if shutil.which(name) is None]


def _install(missing: list[str]) -> None:
    if not debian.may_install():
        raise NoContainers(f"{', '.join(missing)} not installed, and only Debian's packages are known here")
    said = debian.install(_PACKAGES, _missing)
    if still := _missing():
        raise NoContainers(f"apt-get could not install {', '.join(still)}: {said}")


def _stand_in_gpus() -> None:
    """Describe two GPUs to podman, unless the machine has real ones: those must not be shadowed."""
    if Path("/proc/driver/nvidia").exists() or Path("/dev/nvidia0").exists():
        raise NoContainers("this machine has a real GPU, which a stand-in would shadow")
    for folder in _CDI_FOLDERS:
        for file in folder.glob("*") if folder.is_dir() else ():
            if file != _CDI and "nvidia.com/gpu" in file.read_text(errors="replace"):
                raise NoContainers(f"{file} describes GPUs already")
    lock = os.open(_CDI_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    atexit.register(_forget_gpus, lock)
    _CDI.parent.mkdir(parents=True, exist_ok=True)
    names = [(str(index), (index,)) for index in range(2)] + [("all", (0, 1))]
    names += [(uuid, (index,)) for index, uuid in enumerate(GPU_UUIDS)]
    devices = [
        {
            "name": name,
            "containerEdits": {
                "env": [f"FAKE_GPU_{index}=1" for index in indices],
                "deviceNodes": [
                    {"path": f"/dev/nvidia{index}", "type": "c", "major": 1, "minor": 3} for index in indices
                ],
            },
        }
        for name, indices in names
    ]
    told = json.dumps({"cdiVersion": "0.3.0", "kind": "nvidia.com/gpu", "devices": devices})
    # Another run of these tests may be reading it.
    if not _CDI.exists() or _CDI.read_text() != told:
        _CDI.write_text(told)


def _forget_gpus(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # Another run of these tests works with them.
    _CDI.unlink(missing_ok=True)


def _configure(folder: Path) -> None:
    limits = [
        f"{name}={value}:{value}"
        for name, kind, most in (
            ("nofile", resource.RLIMIT_NOFILE, 20000),
            ("nproc", resource.RLIMIT_NPROC, 32768),
        )
        for hard in [resource.getrlimit(kind)[1]]
        for value in [most if hard == resource.RLIM_INFINITY else min(most, hard)]
    ]
    (folder / "containers.conf").write_text(
        f"[containers]\ndefault_ulimits = {json.dumps(limits)}\n"
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{folder}/networks"\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n'
    )


def _make_image(bed: ContainerBed) -> None:
    root = bed.folder / "rootfs"
    for name in ("bin", "tmp", "etc", "www"):
        (root / name).mkdir(parents=True)
    shutil.copy2(str(shutil.which("busybox")), root / "bin" / "busybox")
    for applet in _APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "www" / "index.html").write_text("well\n")
    archive = bed.folder / "image.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True, timeout=60)
    bed.podman("import", str(archive), IMAGE)


def _tear_down(bed: ContainerBed) -> None:
    bed.podman("rm", "-fa", "-t", "0", check=False)
    bed.podman("pod", "rm", "-fa", check=False)
    shutil.rmtree(bed.folder, ignore_errors=True)
