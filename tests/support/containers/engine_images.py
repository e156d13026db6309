"""Engines in containers, for tests: a server in shell, in an image of the container bed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cotenant.engines.launch.plan import Launcher, LaunchPlan
from cotenant.engines.process.process import ChildProcess
from tests.support.containers.container_bed import ContainerBed

IMAGE = "localhost/shell-engine:1"
"""As the bed's image, with a folder that everybody may write to and a `llama-server`."""

FAKE_IMAGE = "localhost/python-engine:1"
_FAKE_FILES = ("fake_llama_server.py", "fake_card.py", "fake_help.py")

SERVER = """
echo "engine $MODEL begins as $(id -u)"
test -n "$SAYS" && echo "$SAYS" >&2
test -n "$EXITS" && exit "$EXITS"
if test -n "$STUBBORN"; then trap '' TERM; else trap 'exit 0' TERM; fi
head -c 64 "$MODEL" > /tmp/health || exit 1
env > /tmp/env
ls /dev > /tmp/devices
grep Cap /proc/self/status > /tmp/rights
echo "$(echo more 2>&1 >> "$MODEL")" > /tmp/written
httpd -f -p "127.0.0.1:$PORT" -h /tmp &
while :; do wait; done
"""

LLAMA_SERVER = """#!/bin/sh
case "$1" in
--version) echo "version: 7 (image)"; exit 0;;
--help) printf '%s\\n' "-m, --model F" "-a, --alias S" "--host H" "--port P" "-c, --ctx-size N" \\
    "-np, --parallel N" "-b, --batch-size N" "-ub, --ubatch-size N" "-t, --threads N" "--threads-http N" \\
    "-ctk, --cache-type-k T" "-ctv, --cache-type-v T" "-fa, --flash-attn [on|off|auto]" \\
    "-ngl, --n-gpu-layers N" "-sm, --split-mode M" "-ts, --tensor-split N" \\
    "-kvu, --kv-unified, -no-kvu, --no-kv-unified"; exit 0;;
esac
echo "0.01 I sched_reserve:        CPU compute buffer size =     1.00 MiB" >&2
while test $# -gt 0; do
    case "$1" in --port) port=$2;; --model|-m) model=$2;; esac
    shift
done
trap 'exit 0' TERM
head -c 64 "$model" > /tmp/health || exit 1
httpd -f -p "127.0.0.1:$port" -h /tmp &
while :; do wait; done
"""


def shell_image(bed: ContainerBed) -> str:
    """Make the image, once for each bed."""
    if not bed.podman("images", "--quiet", IMAGE):
        root = bed.folder / "rootfs"
        (root / "tmp").chmod(0o1777)
        for applet in ("id", "grep", "printf", "head"):
            if not (root / "bin" / applet).exists():
                (root / "bin" / applet).symlink_to("busybox")
        server = root / "bin" / "llama-server"
        server.write_text(LLAMA_SERVER)
        server.chmod(0o755)
        archive = bed.folder / "shell-image.tar"
        subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True, timeout=60)
        bed.podman("import", str(archive), IMAGE)
    return IMAGE


def fake_image(bed: ContainerBed) -> str:
    """Make an image with this interpreter's Python and the fake engine as its llama-server."""
    if not bed.podman("images", "--quiet", FAKE_IMAGE):
        root = bed.folder / "fake-rootfs"
        interpreter = Path(sys.executable).resolve()
        modules = "import encodings.ascii, encodings.idna, encodings.latin_1, runpy, sys, site; "
        engine = Path(__file__).parents[1] / "engines"
        wanted = "".join(
            f"{line}; "
            for name in _FAKE_FILES
            for line in (engine / name).read_text().splitlines()
            if line.startswith(("import ", "from ")) and "fake_" not in line and "__future__" not in line
        )
        tell = "[print(m.__file__) for m in [*sys.modules.values()] if getattr(m, '__file__', None)]"
        ran = subprocess.run(
            [str(interpreter), "-I", "-c", modules + wanted + tell],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        files = [interpreter, *(Path(line) for line in ran.stdout.split() if "site-packages" not in line)]
        binaries = [str(path) for path in files if path.suffix != ".py"]
        listed = subprocess.run(["ldd", *binaries], capture_output=True, text=True, timeout=60, check=False)
        libraries = {
            Path(word) for word in listed.stdout.split() if word.startswith("/") and not word.endswith(":")
        }
        for path in (*files, *libraries):
            copy = root / path.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        for folder in ("app", "tmp", "bin"):
            (root / folder).mkdir(exist_ok=True)
        (root / "tmp").chmod(0o1777)
        for name in _FAKE_FILES:
            shutil.copy2(engine / name, root / "app" / name)
        shutil.copy2(str(shutil.which("busybox")), root / "bin" / "sh")
        server = root / "app" / "llama-server"
        server.write_text(f'#!/bin/sh\nexec {interpreter} /app/fake_llama_server.py "$@"\n')
        server.chmod(0o755)
        archive = bed.folder / "fake-image.tar"
        subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True, timeout=60)
        bed.podman("import", str(archive), FAKE_IMAGE)
    return FAKE_IMAGE


def shell_plan(model: Path, port: int, **env: str) -> LaunchPlan:
    """A server that is ready once `/health` has its model; `/env` and `/devices` say what it sees."""
    told = {"PORT": str(port), "MODEL": str(model), **env}
    return LaunchPlan("tiny", ("sh", "-c", SERVER), port, env=told, reads=(model,))


async def launched(launcher: Launcher, plan: LaunchPlan, log: Path) -> ChildProcess:
    """Launch with the output going to a file."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    try:
        return await launcher.launch(plan, output)
    finally:
        os.close(output)
