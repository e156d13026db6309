"""The container image of `deploy/image`: built on a base of Debian's packages, and run as its users do."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from cotenant.demo_model import write_demo_model
from tests.support import debian
from tests.support.containers.container_bed import ContainerBed, container_bed

ROOT = Path(__file__).parents[1]
CONTAINERFILE = ROOT / "deploy" / "image" / "Containerfile"
BASE, IMAGE, KEY = "localhost/debian:test", "localhost/cotenant:test", "sesame"

pytestmark = [pytest.mark.image, pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> ContainerBed:
    """A podman that has a small Debian as its base image."""
    found = container_bed()
    if isinstance(found, str):
        pytest.skip(found)
    if (debootstrap := debian.installed("debootstrap")) is None:
        pytest.skip("The image cannot be built here: no debootstrap, which makes its base without a registry")
    found = replace(found, environment={**found.environment, **overlay_storage(found)})
    folder = tmp_path_factory.mktemp("base")
    root, archive = folder / "root", folder / "base.tar"
    argv = [debootstrap, "--variant=minbase", "bookworm", str(root)]
    subprocess.run(argv, check=True, timeout=500, capture_output=True)
    for leftover in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / leftover)
        (root / leftover / "partial").mkdir(parents=True)
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True, timeout=100)
    shutil.rmtree(root)
    found.podman("import", str(archive), BASE)
    return found


def overlay_storage(bed: ContainerBed) -> dict[str, str]:
    """Return what has podman share layers, where it can: a copy of the image takes ten seconds each time."""
    path = bed.folder / "overlay.conf"
    folder = bed.folder / "overlay"
    # Without the option podman leaves a mount in the folder, which then stays.
    path.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n'
        '[storage.options.overlay]\nskip_mount_home = "true"\n'
    )
    chosen = {"CONTAINERS_STORAGE_CONF": str(path)}
    argv, environment = ["podman", "info"], {**os.environ, **bed.environment, **chosen}
    return chosen if subprocess.run(argv, env=environment, capture_output=True).returncode == 0 else {}


@pytest.fixture(scope="module")
def image(bed: ContainerBed) -> str:
    built = build(bed, IMAGE)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    print(f"size: {int(bed.podman('image', 'inspect', '--format', '{{.Size}}', IMAGE)) / 1e6:.0f} MB")
    return IMAGE


def build(bed: ContainerBed, tag: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Where a proxy signs the traffic of this machine, pip in the build must trust what pip here does.
    trusted = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    settings = bed.folder / "pip.conf"
    settings.write_text("[global]\ncert = /run/trusted.crt\n")
    mounts = [f"-v={trusted}:/run/trusted.crt:ro", f"-v={settings}:/etc/pip.conf:ro"] if trusted else []
    command = ["podman", "build", "--format=docker", "--network=host", "--layers=false", *mounts]
    argv = [*command, f"--build-arg=BASE={BASE}", *arguments, "-f", str(CONTAINERFILE), "-t", tag, str(ROOT)]
    environment = {**os.environ, **bed.environment}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_demo_model(folder / "demo.gguf")
    # The image's user is none of this machine's.
    folder.chmod(0o755)
    (folder / "demo.gguf").chmod(0o644)
    return folder


@contextmanager
def running(bed: ContainerBed, image: str, *arguments: str) -> Iterator[str]:
    """Yield the address of a container once its own check finds it healthy."""
    began = time.monotonic()
    bed.podman("run", "-d", "--name=cotenant", "-p=127.0.0.1::8080", *arguments, image)
    try:
        while bed.podman("inspect", "--format={{.State.Running}}", "cotenant") == "true":
            address = f"http://{bed.podman('port', 'cotenant', '8080')}"
            if answers(address):
                break
            assert time.monotonic() < began + 60, bed.podman("logs", "cotenant")
        print(f"answers after {time.monotonic() - began:.1f} s")
        assert "unhealthy" not in bed.podman("healthcheck", "run", "cotenant")
        yield address
    finally:
        bed.podman("rm", "-f", "-t", "0", "cotenant")


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found["status"] == "ok"
    except OSError:
        return False


def test_it_serves_a_models_folder_as_a_user_without_rights_and_keeps_its_state(
    bed: ContainerBed, image: str, models: Path
) -> None:
    options = (f"-e=COTENANT_API_KEY={KEY}", f"-v={models}:/models:ro", "-v=cotenant-state:/var/lib/cotenant")
    with running(bed, image, *options) as address:
        with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
            chat = [{"role": "user", "content": "Hello"}]
            answer = client.chat.completions.create(model="demo", messages=chat, max_tokens=8)  # type: ignore[arg-type]
            assert answer.choices[0].message.content
        stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        assert bed.podman("exec", "cotenant", "id", "-u") == "10001"
        assert (
            bed.podman("exec", "cotenant", "find", "/opt/cotenant", "-writable", "-not", "-type", "l") == ""
        )
        table = bed.podman("exec", "cotenant", "cotenant", "ps", "--json")
        assert json.loads(table)["models"][0]["state"] == "ready"
        bed.podman("stop", "-t", "30", "cotenant")
        assert bed.podman("inspect", "--format={{.State.ExitCode}}", "cotenant") == "0"

    with running(bed, image, *options):
        assert bed.podman("exec", "cotenant", "cat", "/var/lib/cotenant/logs/8080/demo.log"), "it is kept"


def test_it_reads_a_configuration_where_one_is_mounted_and_logs_json(
    bed: ContainerBed, image: str, models: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "cotenant.yaml"
    settings.write_text(f"server: {{api_keys: [{KEY}]}}\nmodels: [{{name: ours, path: /models/demo.gguf}}]\n")
    settings.chmod(0o644)
    options = (f"-v={settings}:/etc/cotenant/cotenant.yaml:ro", f"-v={models}:/models:ro")
    with running(bed, image, *options, "-e=COTENANT_LOG_FORMAT=json") as address:
        with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
            assert "ours" in [model.id for model in client.models.list()]
        for line in bed.podman("logs", "cotenant").splitlines():
            json.loads(line)


def test_compose_gives_it_the_gpus_and_no_capability(bed: ContainerBed, image: str, models: Path) -> None:
    bed.podman("tag", image, "localhost/cotenant:latest")
    file = ROOT / "deploy" / "image" / "compose.yaml"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    variables = {"COTENANT_API_KEY": KEY, "MODELS": str(models), "PORT": str(port)}
    environment = {**os.environ, **bed.environment, **variables}

    def compose(*words: str) -> None:
        argv = ["podman-compose", "-p", "image-test", "-f", str(file), *words]
        ran = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=100)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    try:
        compose("up", "-d", "--no-build")
        container = bed.podman("ps", "-q", "--filter", "label=io.podman.compose.project=image-test")
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while not answers(address):
            assert time.monotonic() < deadline, bed.podman("logs", container)
        assert bed.podman("exec", container, "ls", "/dev/nvidia0", "/dev/nvidia1")
        assert "CapEff:\t0000000000000000" in bed.podman("exec", container, "cat", "/proc/1/status")
    finally:
        compose("down", "-t", "0")


def test_without_a_key_it_refuses_to_listen_and_says_what_to_do(bed: ContainerBed, image: str) -> None:
    argv, environment = ["podman", "run", "--rm", image], {**os.environ, **bed.environment}
    ran = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2
    assert "no API key is set" in ran.stderr


def test_an_engine_that_there_is_not_ends_the_build(bed: ContainerBed) -> None:
    built = build(bed, "localhost/none:test", "--build-arg=ENGINE=abacus")
    assert built.returncode != 0
    assert "ENGINE=abacus is none of cpu, cuda, rocm and vulkan" in built.stdout + built.stderr
