"""What Ray is to be started with is printed, read back, and never given to an agent."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cotenant.ray.environment import (
    VARIABLES,
    agent_environment,
    lacking,
    to_start_with,
    token_mode,
    warnings,
)

_DEPLOY = Path(__file__).parents[2] / "deploy" / "ray"
_PATHS = (Path("/keys/token"), Path("/var/lib/gcs"))


@pytest.mark.parametrize("head", [True, False])
def test_what_is_started_as_printed_lacks_nothing(head: bool) -> None:
    assert lacking(to_start_with(head, *_PATHS), head=head) == []


def test_each_variable_that_is_missing_is_said_with_what_happens_without_it() -> None:
    said = warnings("a", {}, head=True)
    assert len(said) == len(VARIABLES)
    assert said[0].startswith("the head a was started without RAY_AUTH_MODE=token: whoever reaches a port")
    of_a_node = warnings("b", {}, head=False)
    assert not [text for text in of_a_node if "storage" in text or "health_check" in text]
    assert of_a_node[0].startswith("b was started without")


@pytest.mark.parametrize(
    ("name", "value", "holds"),
    [
        ("RAY_health_check_failure_threshold", "600", True),
        ("RAY_health_check_failure_threshold", "5", False),
        ("RAY_health_check_failure_threshold", "many", False),
        ("RAY_gcs_rpc_server_reconnect_timeout_s", "60", False),
        ("RAY_AUTH_MODE", "disabled", False),
    ],
)
def test_a_longer_timer_will_do_and_a_shorter_one_will_not(name: str, value: str, holds: bool) -> None:
    environment = {**to_start_with(True, *_PATHS), name: value}
    assert (name not in {each.name for each in lacking(environment, head=True)}) is holds


def test_redis_stands_for_rocksdb() -> None:
    environment = to_start_with(True, *_PATHS)
    environment["RAY_REDIS_ADDRESS"] = "10.0.0.9:6379"
    del environment["RAY_gcs_storage"], environment["RAY_gcs_storage_path"]
    assert lacking(environment, head=True) == []


def test_an_agent_gets_nothing_that_ray_adds() -> None:
    worker = {"RAY_AUTH_TOKEN": "secret", "RAY_JOB_ID": "1", "OMP_NUM_THREADS": "1", "HOME": "/root"}
    assert agent_environment({**worker, "COTENANT_GPUS": "24GiB"}) == {
        "HOME": "/root",
        "COTENANT_GPUS": "24GiB",
    }


@pytest.mark.slow
def test_neither_the_daemon_nor_an_agent_imports_ray() -> None:
    modules = "cotenant.daemon.daemon, cotenant.daemon.nodes.parts, cotenant.agent.main, cotenant.cli.serve"
    code = f"import sys, {modules}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_manifest_for_kuberay_starts_ray_so() -> None:
    spec = yaml.safe_load((_DEPLOY / "raycluster.yaml").read_text(encoding="utf-8"))["spec"]
    groups = [(spec["headGroupSpec"], True), *((group, False) for group in spec["workerGroupSpecs"])]
    for group, head in groups:
        (container,) = group["template"]["spec"]["containers"]
        environment = {each["name"]: each.get("value", "") for each in container["env"]}
        assert lacking(environment, head=head) == []
        assert {"COTENANT_MACHINE_ID", "COTENANT_NODE"} <= environment.keys()


def test_the_manifest_for_kuberay_has_fields_of_a_ray_cluster_and_options_of_ray_start() -> None:
    # The fields of KubeRay's RayClusterSpec, HeadGroupSpec and WorkerGroupSpec, v1, of which we use these.
    manifest = yaml.safe_load((_DEPLOY / "raycluster.yaml").read_text(encoding="utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    spec = manifest["spec"]
    assert spec.keys() == {"headGroupSpec", "workerGroupSpecs"}
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head.keys() == {"rayStartParams", "template"}
    counts = ("replicas", "minReplicas", "maxReplicas")
    assert workers.keys() == {"groupName", *counts, "rayStartParams", "template"}
    assert {type(workers[count]) for count in counts} == {int}
    program = Path(sys.executable).with_name("ray")
    if not program.exists():
        pytest.skip("options of `ray start` cannot be tested here: Ray is not installed")
    asked = [program, "start", "--help"]
    options = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert [name for name in group["rayStartParams"] if f"--{name} " not in options] == []
        pod = group["template"]["spec"]
        names = [each["name"] for container in pod["containers"] for each in container["env"]]
        assert len(names) == len({*names})
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["head", "node"])
def test_systemd_accepts_the_units(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("units cannot be tested here: no systemd-analyze")
    unit = _DEPLOY / f"cotenant-ray-{name}.service"
    text = unit.read_text(encoding="utf-8")
    # It looks for the program: here that is not where it is installed.
    assert f"=/opt/cotenant/share/ray/start-{name}.sh " in text
    (tmp_path / unit.name).write_text(text.replace("/opt/cotenant/share/ray", str(_DEPLOY)))
    asked = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    # It may find fault with units of this machine, too.
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []


@pytest.mark.parametrize("name", ["start-head.sh", "start-node.sh"])
def test_the_scripts_are_shell_and_say_what_they_lack(name: str) -> None:
    done = subprocess.run(["sh", str(_DEPLOY / name)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "give the address" in done.stderr


def test_a_token_that_others_can_read_is_said(tmp_path: Path) -> None:
    token = tmp_path / "token"
    environment = {**to_start_with(False, token, tmp_path)}
    assert token_mode(environment) == {}, "nothing is said of one that is not there"
    token.touch(mode=0o600)
    assert warnings("b", {**environment, **token_mode(environment)}, head=False) == []
    token.chmod(0o644)
    (said,) = warnings("b", {**environment, **token_mode(environment)}, head=False)
    assert said.startswith(f"other users can read Ray's token {token} there: whoever has it")
