"""Compose files as people write them, compared with what podman-compose makes of them.

`docker compose` is not installed where these tests run. What it makes of each shape by the Compose
Specification is in the table: the GPUs that each service asks for, by name (none for any).
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.services.compose.compose_files import read_project
from cotenant.services.compose.gpu_requests import environment_of, gpu_requests, labels_of

RESERVED = "deploy: {resources: {reservations: {devices: [%s]}}}"
ANY: list[tuple[str, ...]] = [()]


def one(text: str) -> str:
    return f"services: {{a: {{image: x, {text}}}}}"


def reserved(entry: str) -> str:
    return one(RESERVED % entry)


SHAPES: dict[str, tuple[dict[str, str], dict[str, list[tuple[str, ...]]]]] = {
    "all": ({"a.yml": reserved("{driver: nvidia, count: all, capabilities: [gpu]}")}, {"a": ANY}),
    "a count": ({"a.yml": reserved("{driver: nvidia, count: 1, capabilities: [gpu]}")}, {"a": ANY}),
    "a count of .env": (
        {"a.yml": reserved("{driver: nvidia, count: '${N:-1}', capabilities: [gpu]}"), ".env": "N=2\n"},
        {"a": ANY},
    ),
    "ids": (
        {"a.yml": reserved("{driver: nvidia, device_ids: ['0','1'], capabilities: [gpu]}")},
        {"a": [("0", "1")]},
    ),
    "an id as number": ({"a.yml": reserved("{device_ids: [0], capabilities: [gpu]}")}, {"a": [("0",)]}),
    "ids in one text": (
        {"a.yml": reserved("{device_ids: ['0, 1'], capabilities: [gpu]}")},
        {"a": [("0", "1")]},
    ),
    "a count of none": ({"a.yml": reserved("{driver: nvidia, count: 0, capabilities: [gpu]}")}, {"a": []}),
    "no driver": ({"a.yml": reserved("{capabilities: [gpu]}")}, {"a": ANY}),
    "other capabilities": (
        {"a.yml": reserved("{driver: nvidia, count: 1, capabilities: [compute, utility]}")},
        {"a": ANY},
    ),
    "a UUID": ({"a.yml": reserved("{device_ids: [GPU-3a], capabilities: [gpu]}")}, {"a": [("GPU-3a",)]}),
    "a MIG slice": ({"a.yml": reserved("{device_ids: [MIG-3a], capabilities: [gpu]}")}, {"a": [("MIG-3a",)]}),
    "driver cdi": (
        {"a.yml": reserved("{driver: cdi, device_ids: ['nvidia.com/gpu=1'], capabilities: [gpu]}")},
        {"a": [("1",)]},
    ),
    "driver cdi alone": (
        {"a.yml": reserved("{driver: cdi, device_ids: ['nvidia.com/gpu=all']}")},
        {"a": ANY},
    ),
    "next to another kind": (
        {"a.yml": reserved("{device_ids: ['0'], capabilities: [gpu]}, {driver: o, capabilities: [tpu]}")},
        {"a": [("0",)]},
    ),
    "a TPU": ({"a.yml": reserved("{driver: o, capabilities: [tpu]}")}, {"a": []}),
    "gpus all": ({"a.yml": one("gpus: all")}, {"a": ANY}),
    "gpus 1": ({"a.yml": one("gpus: 1")}, {"a": ANY}),
    "gpus '2'": ({"a.yml": one("gpus: '2'")}, {"a": ANY}),
    "gpus -1": ({"a.yml": one("gpus: -1")}, {"a": ANY}),
    "gpus 0": ({"a.yml": one("gpus: 0")}, {"a": []}),
    "gpus ids": ({"a.yml": one("gpus: [{driver: nvidia, device_ids: ['1']}]")}, {"a": [("1",)]}),
    "gpus count": ({"a.yml": one("gpus: [{driver: nvidia, count: 2}]")}, {"a": ANY}),
    "a CDI name": ({"a.yml": one("devices: ['nvidia.com/gpu=0', '/dev/snd:/dev/snd']")}, {"a": [("0",)]}),
    "a CDI source": ({"a.yml": one("devices: [{source: nvidia.com/gpu=0}]")}, {"a": [("0",)]}),
    "AMD": ({"a.yml": one("devices: ['/dev/kfd', '/dev/dri']")}, {"a": ANY}),
    "a render node alone": ({"a.yml": one("devices: ['/dev/dri:/dev/dri']")}, {"a": []}),
    "runtime": ({"a.yml": one("runtime: nvidia")}, {"a": ANY}),
    "runtime amd": ({"a.yml": one("runtime: amd")}, {"a": ANY}),
    "runtime amd and its variable": (
        {"a.yml": one("runtime: amd, environment: {AMD_VISIBLE_DEVICES: '0,1'}")},
        {"a": [("0", "1")]},
    ),
    "another runtime": ({"a.yml": one("runtime: runsc")}, {"a": []}),
    # docker compose refuses this form, which is that of docker's API; podman-compose keeps it.
    "nested capabilities": (
        {"a.yml": reserved("{count: 1, capabilities: [[gpu], [utility]]}")},
        {"a": ANY},
    ),
    "runtime of version 2": ({"a.yml": "version: '2.4'\n" + one("runtime: nvidia")}, {"a": ANY}),
    "runtime and a variable": (
        {"a.yml": one("runtime: nvidia, environment: {NVIDIA_VISIBLE_DEVICES: 1}")},
        {"a": [("1",)]},
    ),
    "runtime and a list": (
        {"a.yml": one("runtime: nvidia, environment: ['NVIDIA_VISIBLE_DEVICES=0,1']")},
        {"a": [("0", "1")]},
    ),
    "the variable alone": ({"a.yml": one("environment: ['NVIDIA_VISIBLE_DEVICES=0']")}, {"a": [("0",)]}),
    "runtime and none": (
        {"a.yml": one("runtime: nvidia, environment: ['NVIDIA_VISIBLE_DEVICES=none']")},
        {"a": []},
    ),
    "the variable with a space": (
        {"a.yml": one("environment: ['NVIDIA_VISIBLE_DEVICES=0, 1']")},
        {"a": [("0", "1")]},
    ),
    "device files": (
        {"a.yml": one("devices: ['/dev/nvidia0:/dev/nvidia0', /dev/nvidiactl, '/dev/nvidia-uvm', /dev/snd]")},
        {"a": [("0",)]},
    ),
    "a CDI name of AMD": ({"a.yml": one("devices: ['amd.com/gpu=1']")}, {"a": [("1",)]}),
    "the variable off": ({"a.yml": one("environment: ['NVIDIA_VISIBLE_DEVICES=void']")}, {"a": []}),
    ".env with a comment": (
        {"a.yml": one("environment: {NVIDIA_VISIBLE_DEVICES: '$GPU'}"), ".env": "GPU=1 # the second\n"},
        {"a": [("1",)]},
    ),
    ".env with quotes": (
        {
            "a.yml": one("environment: {A: '$A', B: '${B}', C: '${C}', D: '${D:-d}', E: '$$A'}"),
            ".env": "A='x # y'\nexport B=\"p q\" # r\nC=a#b\nD=\n",
        },
        {"a": []},
    ),
    "profiles": (
        {"a.yml": "services: {a: {image: x, profiles: [gpu], gpus: all}, b: {image: x}}"},
        {"a": ANY, "b": []},
    ),
    "include": (
        {
            "a.yml": "include: [b.yml]\nservices: {a: {image: x}}",
            "b.yml": "services: {b: {image: x, gpus: all}}",
        },
        {"a": [], "b": ANY},
    ),
    "include with a path": (
        {
            "a.yml": "include: [{path: b.yml}]\nservices: {a: {image: x}}",
            "b.yml": "services: {b: {image: x, runtime: nvidia}}",
        },
        {"a": [], "b": ANY},
    ),
    "merge keys": (
        {
            "a.yml": "x-gpu: &gpu {runtime: nvidia, environment: &env {A: '1'}}\n"
            "services: {a: {<<: *gpu, image: x}, b: {image: x, environment: {<<: *env, B: '2'}}}"
        },
        {"a": ANY, "b": []},
    ),
    "a list of merge keys": (
        {
            "a.yml": "x-one: &one {runtime: nvidia}\nx-two: &two {labels: {cotenant.role: llm}}\n"
            "services: {a: {<<: [*one, *two], image: x}}"
        },
        {"a": ANY},
    ),
    "two files": (
        {
            "a.yml": one("environment: [A=1], labels: [k=v]"),
            "c.yml": "services: {a: {environment: {B: '2'}, labels: {l: w}, gpus: all}}",
        },
        {"a": ANY},
    ),
    "reset": ({"a.yml": one("gpus: all"), "c.yml": "services: {a: {gpus: !reset null}}"}, {"a": []}),
    "values that are not text": (
        {"a.yml": one("environment: {A: true, B: 1.5, C: null, D: 'yes'}")},
        {"a": []},
    ),
}
ALONE: dict[str, tuple[dict[str, str], dict[str, list[tuple[str, ...]]]]] = {
    # podman-compose fills every file from the `.env` of the first.
    "include with a .env": (
        {
            "a.yml": "include: [b/b.yml]\nservices: {a: {image: x, gpus: [{device_ids: ['${GPU}']}]}}",
            "b/b.yml": "services: {b: {image: x, gpus: [{device_ids: ['${GPU}', '${OWN}']}]}}",
            "b/.env": "GPU=5\nOWN=2\n",
            ".env": "GPU=1\n",
        },
        {"a": [("1",)], "b": [("1", "2")]},
    ),
    "include with env_file": (
        {
            "a.yml": "include: [{path: b/b.yml, env_file: [x/one.env, x/two.env]}]",
            "b/b.yml": "services: {b: {image: x, gpus: [{device_ids: ['${GPU}', '${OWN:-4}', '${TWO}']}]}}",
            "b/.env": "OWN=2\n",
            "x/one.env": "GPU=0\nTWO=9\n",
            "x/two.env": "TWO=3\n",
        },
        {"b": [("0", "4", "3")]},
    ),
    "include with a project directory": (
        {
            "a.yml": "include: [{path: b/b.yml, project_directory: x}]",
            "b/b.yml": "services: {b: {image: x, gpus: [{device_ids: ['${GPU}']}]}}",
            "x/.env": "GPU=3\n",
        },
        {"b": [("3",)]},
    ),
    # podman-compose prints files before it extends them, and cannot read `!override` of these keys.
    "extends": (
        {
            "a.yml": "services: {base: {image: x, environment: {A: '1'}, gpus: all}, "
            "a: {extends: base, environment: [B=2]}}"
        },
        {"base": ANY, "a": ANY},
    ),
    "extends a file": (
        {
            "a.yml": "services: {a: {extends: {file: base/b.yml, service: base}}}",
            "base/b.yml": "services: {base: {image: x, runtime: nvidia}}",
        },
        {"a": ANY},
    ),
    "override": (
        {
            "a.yml": one("devices: ['nvidia.com/gpu=0']"),
            "c.yml": "services: {a: {devices: !override ['nvidia.com/gpu=1']}}",
        },
        {"a": [("1",)]},
    ),
}


def files_of(folder: Path, texts: dict[str, str]) -> list[Path]:
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return [folder / name for name in ("a.yml", "c.yml") if name in texts]


@pytest.mark.parametrize("shape", [*SHAPES, *ALONE])
def test_requests_are_those_of_the_specification(tmp_path: Path, shape: str):
    texts, expected = {**SHAPES, **ALONE}[shape]
    project = read_project(files_of(tmp_path, texts))
    found = {name: [each.ids for each in service.gpus] for name, service in project.services.items()}
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_podman_compose_reads_the_same(tmp_path: Path, shape: str):
    program = Path(sys.executable).with_name("podman-compose")
    if not program.exists():
        pytest.skip("podman-compose is not installed")
    files = files_of(tmp_path, SHAPES[shape][0])
    named = [option for file in files for option in ("-f", str(file))]
    printed = subprocess.run(
        [program, *named, "--profile", "gpu", "config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    services: dict[str, Any] = yaml.safe_load(printed.stdout)["services"]
    project = read_project(files)
    assert services.keys() == project.services.keys()
    for name, theirs in services.items():
        ours = project.services[name]
        assert [each.ids for each in gpu_requests(theirs)] == [each.ids for each in ours.gpus]
        assert environment_of(theirs) == ours.environment
        assert labels_of(theirs) == ours.labels
