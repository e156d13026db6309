"""The section `nodes` and the `nodes:` of a model: what they take, and what is wrong between their parts."""

from pathlib import Path

import pytest

from cotenant.config.changes import diff
from cotenant.config.values.nodes import NodeLauncher, NodePull, NodesSettings, NodeTls
from cotenant.domain.errors import BadSetting
from tests.config.conftest import Reader

ACROSS = "models:\n- {path: models/tiny.gguf, across_nodes: true}\n"
MODEL = "models:\n- {path: models/tiny.gguf, nodes: [b, GPU-Box-2]}\n"


def test_without_the_section_there_are_no_other_machines(read: Reader) -> None:
    assert read("").nodes is None
    assert read("nodes:").nodes is None
    assert read("nodes: {}").nodes == NodesSettings()


def test_everything_can_be_told(read: Reader, folder: Path) -> None:
    (folder / "ca.pem").write_text("")
    text = (
        "nodes: {launcher: ray, address: '10.0.0.1:6379', fleet: lab, suspect_after: 2s, lost_after: 5s, "
        "lease: 30s, gate_port: 0, pull: hub, tls: {ca: ca.pem, cert: /etc/node.pem, key: /etc/node.key}}"
    )
    tls = NodeTls(folder / "ca.pem", Path("/etc/node.pem"), Path("/etc/node.key"))
    told = read(text).nodes
    assert told == NodesSettings(
        NodeLauncher.RAY, "10.0.0.1:6379", "lab", 2.0, 5.0, 30.0, 0, NodePull.HUB, tls
    )


def test_a_model_names_its_machines_by_host_names_in_any_case(read: Reader) -> None:
    (entry,) = read(f"nodes: {{}}\n{MODEL}").models
    assert entry.nodes == ("b", "gpu-box-2")


def across(more: str) -> str:
    return "nodes: {}\n" + ACROSS.replace("true", f"true, {more}")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nodes: {launcher: slurm}", "slurm"),
        ("nodes: {suspect_after: 0.5s}", "too short"),
        ("nodes: {suspect_after: 20s}", "lost after 10 s, before it is suspect"),
        ("nodes: {lease: 5s}", "end after 5 s, before their machine counts as lost"),
        ("nodes: {address: 'ray://head'}", "not an address of Ray"),
        ("nodes: {fleet: 'a b'}", "not the name of a machine"),
        ("nodes: {gate_port: 70000}", "70000"),
        ("nodes: {pull: always}", "always"),
        ("nodes: {listen: 8081}", "listen"),
        ("nodes: {tls: {ca: missing.pem, cert: /c, key: /k}}", "missing.pem does not exist"),
        ("nodes: {tls: {ca: cotenant.yaml, cert: c.pem, key: /k}}", "c.pem is no absolute path"),
        ("nodes: {tls: {ca: cotenant.yaml}}", "cert"),
        (MODEL, "b, gpu-box-2 cannot be used: there is no section `nodes:`"),
        ("nodes: {}\nmodels:\n- {path: models/tiny.gguf, nodes: [0]}", "is not the name of a machine"),
        (ACROSS, "there are no other machines: there is no section `nodes:`"),
        (across("copies: 2"), "over several machines has one copy"),
        (across("image: x"), "an engine in a container cannot be over"),
        (across("n_gpu_layers: auto"), "only a model with all layers"),
        (across("tensor_split: [1, 1]"), "none can be given by hand"),
        (
            "nodes: {}\nmodels:\n- {name: r, engine: remote, address: 'http://h', across_nodes: true}",
            "only llama.cpp models can be over several",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_what_to_do(read: Reader, text: str, what: str) -> None:
    with pytest.raises(BadSetting) as raised:
        read(text)
    (issue,) = [each for each in raised.value.problems if what in str(each)]
    assert "cotenant.yaml" in str(issue)


def test_a_model_may_be_over_several_machines(read: Reader) -> None:
    (entry,) = read(f"nodes: {{}}\n{ACROSS}").models
    assert entry.across_nodes
    assert entry.request.across_nodes


def test_changes_are_told(read: Reader) -> None:
    before, after = read("nodes: {}"), read("nodes: {lease: 30s}")
    assert diff(before, after).sentences() == ("nodes.lease changed",)
    other = read(f"nodes: {{}}\n{MODEL.replace('[b, GPU-Box-2]', '[c]')}")
    assert diff(read(f"nodes: {{}}\n{MODEL}"), other).reloaded == other.models
