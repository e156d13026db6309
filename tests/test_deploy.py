"""What `deploy/` holds for Prometheus, Grafana and compose."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.cli.main import build_parser
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import ModelStatus
from cotenant.domain.fragmentation import DeviceFragmentation, Fragmentation
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.gateway.telemetry.counters import RequestCounters
from cotenant.gateway.telemetry.metrics import Metrics
from tests.gateway.harness import SlotRouter
from tests.gateway.telemetry.test_history import Book
from tests.support.daemon.plain_gateway import PlainLessor
from tests.support.daemon.plain_operator import PlainOperator
from tests.support.debian import unpacked

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "cotenant.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "cotenant.json"
_OURS = re.compile(r"\bcotenant_[a-z_]+")
_SUFFIXES = ("_total", "_bucket", "_sum", "_count")


@pytest.fixture(scope="module")
def emitted() -> dict[str, set[str]]:
    """The metrics that /metrics tells, and the labels of each."""
    router = SlotRouter(None, models=(ServedModel("llama", ModelKind.TEXT, 1),))
    book = Book(Alert(AlertKind.CARD_LOST, "GPU 0", 0.0, True, "lost"))
    found = {}
    for family in Metrics(
        RequestCounters(router), PlainOperator(ModelStatus("llama", "ready")), book, PlainLessor()
    ).collect(Fragmentation(by_device={"GPU-a": DeviceFragmentation(0.0, 0)})):
        labels = set(getattr(family, "_labelnames", ()))
        found[family.name] = labels | ({"le"} if family.type == "histogram" else set())
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def family_of(name: str, emitted: dict[str, set[str]]) -> str | None:
    if name in emitted:
        return name
    return next((name.removesuffix(s) for s in _SUFFIXES if name.removesuffix(s) in emitted), None)


@pytest.mark.parametrize(("where", "expr"), list(queries()))
def test_every_query_asks_for_metrics_and_labels_that_there_are(
    where: str, expr: str, emitted: dict[str, set[str]]
) -> None:
    names = _OURS.findall(expr)
    assert names or expr.startswith("up{")
    known = {"instance", "job"}
    for name in names:
        family = family_of(name, emitted)
        assert family is not None, f"{where}: {name} is no metric of /metrics"
        known |= emitted[family]
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expr)
    grouped = [word for words in re.findall(r"(?:by|on) \(([^)]*)\)", expr) for word in words.split(", ")]
    assert set(matched) | set(grouped) <= known, where


def test_alerts_of_the_daemon_are_asked_for_by_names_that_there_are() -> None:
    asked = {name for _, expr in queries() for name in re.findall(r'alert="(\w+)"', expr)}

    assert asked
    assert asked <= set(AlertKind)


def test_every_rule_says_what_is_wrong_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert {"summary", "description"} == set(rule["annotations"])


def test_panels_do_not_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_what_compose_mounts_is_there_and_nothing_listens_for_others() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]

    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), source
        assert "ports" not in service
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def promtool() -> str:
    found = os.environ.get("COTENANT_TEST_PROMTOOL") or unpacked("prometheus", "promtool")
    if found is None:
        pytest.skip(
            "The rules for alerts cannot be tested here: no promtool: install prometheus, or set "
            "COTENANT_TEST_PROMTOOL to one"
        )
    return found


def run(*argv: str) -> str:
    done = subprocess.run([promtool(), *argv], capture_output=True, text=True, timeout=60, cwd=RULES.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_promtool_finds_the_rules_sound_and_their_tests_hold() -> None:
    assert f"{len(rules())} rules found" in run("check", "rules", RULES.name)
    assert "SUCCESS" in run("test", "rules", "cotenant.rules.test.yml")


@pytest.mark.slow
def test_promtool_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    asked = [
        {"record": f"query:{number}".replace(":", "_"), "expr": expr.replace("$instance", ".*")}
        for number, (_, expr) in enumerate(queries())
    ]
    written = tmp_path / "queries.yml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": asked}]}))

    run("check", "rules", str(written))


def test_alerts_name_commands_that_exist() -> None:
    named = re.findall(r"`cotenant ([a-z ]+?)(?: --json| \{\{|`)", RULES.read_text())
    assert named
    parser = build_parser()
    for command in named:
        with pytest.raises(SystemExit) as end:
            parser.parse_args([*command.split(), "--help"])
        assert end.value.code == 0, command


IMAGE = DEPLOY / "image"
STATEFUL = DEPLOY / "kubernetes" / "cotenant.yaml"


def stated(instruction: str) -> set[str]:
    """What the image's last stage states with VOLUME or EXPOSE."""
    text = (IMAGE / "Containerfile").read_text()
    return set(re.findall(r"[\w./]+", "".join(re.findall(rf"^{instruction} (.*)$", text, re.MULTILINE))))


def test_compose_quadlet_and_kubernetes_mount_and_publish_what_the_image_states() -> None:
    volumes, (port,) = stated("VOLUME"), stated("EXPOSE")
    compose = yaml.safe_load((IMAGE / "compose.yaml").read_text())["services"]["cotenant"]
    assert {each.split(":")[-1 if each.count(":") == 1 else -2] for each in compose["volumes"]} == volumes
    assert [each.rpartition(":")[2] for each in compose["ports"]] == [port]
    assert (IMAGE / compose["build"]["context"] / compose["build"]["dockerfile"]).exists()

    unit = (IMAGE / "cotenant.container").read_text()
    assert {each.split(":")[1] for each in re.findall(r"^Volume=(.*)$", unit, re.MULTILINE)} == volumes
    assert re.findall(r"^PublishPort=127.0.0.1:.*:(\d+)$", unit, re.MULTILINE) == [port]

    service, stateful = yaml.safe_load_all(STATEFUL.read_text())
    pod = stateful["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    claimed = {each["metadata"]["name"] for each in stateful["spec"]["volumeClaimTemplates"]}
    assert volumes <= set(mounted)
    assert set(mounted.values()) == claimed | {each["name"] for each in pod["volumes"]}
    assert [each["containerPort"] for each in container["ports"]] == [int(port)]
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert labels == service["spec"]["selector"] == stateful["spec"]["selector"]["matchLabels"]
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    assert str(pod["securityContext"]["runAsUser"]) in (IMAGE / "Containerfile").read_text()
    # A Service named `cotenant` would set COTENANT_PORT to its address.
    assert pod["enableServiceLinks"] is False


def test_kubectl_reads_the_manifest(tmp_path: Path) -> None:
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("The manifest for Kubernetes cannot be checked here: no kubectl")
    (tmp_path / "kustomization.yaml").write_text("resources: [cotenant.yaml]\n")
    shutil.copy(STATEFUL, tmp_path)
    argv = [kubectl, "kustomize", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [each["kind"] for each in yaml.safe_load_all(done.stdout)] == ["Service", "StatefulSet"]


def test_quadlet_makes_a_unit_of_the_container_file(tmp_path: Path) -> None:
    quadlet = Path(os.environ.get("COTENANT_TEST_QUADLET", "/usr/libexec/podman/quadlet"))
    if not quadlet.exists():
        pytest.skip(
            f"The Quadlet unit cannot be checked here: no {quadlet}: install podman 4.4 or later, or set "
            "COTENANT_TEST_QUADLET to its quadlet"
        )
    shutil.copy(IMAGE / "cotenant.container", tmp_path)
    environment = {**os.environ, "QUADLET_UNIT_DIRS": str(tmp_path)}
    argv = [str(quadlet), "-dryrun"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--device nvidia.com/gpu=all" in done.stdout
