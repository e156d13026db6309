"""`cotenant doctor --node` and `cotenant engine … --node`: another machine, through the daemon."""

import json
from dataclasses import replace

import pytest

from cotenant.cli.main import main
from cotenant.domain.engines import InstallOrder
from cotenant.domain.errors import EngineInstallFailed, NoRoomOnDisk
from cotenant.domain.keys import KeyScope, flat_key
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.domain.units import GIB
from cotenant.ray.environment import warnings
from tests.cli.test_daemon_commands import running
from tests.support.daemon.plain_nodes import READY, SILENT, PlainNodes
from tests.support.daemon.plain_operator import PlainOperator
from tests.support.daemon.planner import over_machines

LACKS = warnings("a", {"RAY_AUTH_MODE": "token"}, head=True)


def ran(nodes: PlainNodes | None, *argv: str, **options: object) -> int:
    with running(PlainOperator(), nodes=nodes, **options) as address:
        return main([*argv, "--address", address])


def test_the_doctor_of_a_machine_says_what_the_daemon_knows_and_what_its_agent_finds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = PlainNodes(replace(READY, warnings=tuple(LACKS)), SILENT)
    assert ran(nodes, "doctor", "--node", "a") == 1, "there is a problem"
    out = capsys.readouterr().out
    assert "PROBLEM  the disk is full" in out
    assert "a answers: 2 GPUs, 10.0 GiB free, 1 engine, 59.0 s of its lease left" in " ".join(out.split())
    assert "the head a was started without RAY_gcs_storage=rocksdb" in out
    assert "Without it, a head that is started again has forgotten the cluster" in " ".join(out.split())
    assert "→ cotenant nodes env --head   # what to start Ray with on a" in out
    assert "b has not answered" not in out, "it is about one machine"
    ran(nodes, "doctor", "--node", "a", "--json")
    told = json.loads(capsys.readouterr().out)
    assert {each["area"] for each in told["findings"]} == {"nodes", "machine"}
    assert told["counts"]["warning"] == len(LACKS)


def test_of_a_silent_machine_the_doctor_says_that_and_not_only_that_it_cannot_ask(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ran(PlainNodes(READY, SILENT), "doctor", "--node", "b") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "warning b has not answered for 4.0 s Why: Nothing new is placed there" in out
    assert "its clock is 3 s ahead" in out
    assert "the agent of b could not check its machine: the agent of b did not answer" in out
    ran(PlainNodes(SILENT, problem="the head does not answer"), "doctor", "--node", "b")
    assert "no machine can be reached through Ray: the head does not answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("doctor", "--node", "z"), "there is no machine 'z'"),
        (("doctor", "--node", "a", "--containers"), "--containers is about this machine"),
        (("doctor", "--node", "a", "--llama-server", "/bin/x"), "--llama-server is about this machine"),
        (("engine", "list", "--node", "z"), "there is no machine 'z'"),
        (("engine", "list", "--node", "b"), "did not answer within 10 s"),
        (("engine", "list", "--node", "a", "--llama-server", "/bin/x"), "COTENANT_LLAMA_SERVER"),
        (("engine", "install", "--node", "b"), "did not answer within 10 s"),
    ],
)
def test_what_cannot_be_asked_of_a_machine_is_one_line(
    argv: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(PlainNodes(READY, SILENT), *argv) in (1, 2)
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


def test_without_nodes_no_machine_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("doctor",), ("engine", "list"), ("engine", "install"), ("pull", "m")):
        assert ran(None, *command, "--node", "b") == 2
        assert "No `nodes:` are configured" in capsys.readouterr().err


def test_the_engines_of_a_machine_are_listed_as_those_of_this_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(PlainNodes(READY), "engine", "list", "--node", "a") == 0
    out = capsys.readouterr().out
    assert out == "* xllamacpp 0.3: sees A40 (CUDA)\n    /venv/python\n* runs models on a's GPUs.\n"
    ran(PlainNodes(READY), "engine", "list", "--node", "a", "--json")
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    assert (engine["chosen"], engine["devices"][0]["name"]) == (True, "CUDA0")


def test_an_install_on_a_machine_shows_its_progress_as_one_here(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = PlainNodes(READY)
    flags = ("cuda", "--index", "https://mirror", "--no-verify", "--newest")
    assert ran(nodes, "engine", "install", "--node", "a", *flags) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a: python -m pip install xllamacpp",
        "note: The wheel is not verified.",
        "  Collecting xllamacpp",
        "xllamacpp 0.3 is installed on a and sees A40 (CUDA).",
    ]
    assert nodes.installed == [InstallOrder("cuda", "https://mirror", verify=False, newest=True)]
    assert ran(nodes, "engine", "install", "--node", "a", "--dry-run") == 0
    assert nodes.installed[1:] == [InstallOrder(dry_run=True)]
    assert "Collecting" not in capsys.readouterr().out


def test_an_install_that_fails_on_a_machine_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = PlainNodes(READY)
    nodes.ends = EngineInstallFailed("pip failed: no space left", hint="Make room.")
    assert ran(nodes, "engine", "install", "--node", "a") == 1
    said = capsys.readouterr()
    assert said.out.endswith("  Collecting xllamacpp\n")
    assert "pip failed: no space left. Make room." in said.err


def test_to_install_on_a_machine_takes_a_key_of_an_administrator(capsys: pytest.CaptureFixture[str]) -> None:
    keys = (replace(flat_key("operator"), scope=KeyScope.OPERATE),)
    nodes, key = PlainNodes(READY), ("--api-key", "operator")
    assert ran(nodes, "engine", "list", "--node", "a", *key, api_keys=keys) == 0
    assert ran(nodes, "doctor", "--node", "a", *key, api_keys=keys) == 1
    assert ran(nodes, "engine", "install", "--node", "a", *key, api_keys=keys) != 0
    assert "this needs admin" in capsys.readouterr().err
    assert ran(nodes, "pull", "llama", "--node", "a", *key, api_keys=keys) != 0
    assert "this needs admin" in capsys.readouterr().err
    assert not nodes.installed
    assert not nodes.pulled


def test_a_pull_on_a_machine_shows_its_progress_as_one_here(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = PlainNodes(READY)
    assert ran(nodes, "pull", "llama", "--node", "a") == 0
    assert capsys.readouterr().out.splitlines() == [
        "a lacks 1 of 1 file of llama",
        "a fetches m.gguf (4.0 GiB)",
        "/models/m.gguf",
    ]
    assert ran(nodes, "pull", "llama", "--node", "a", "--json") == 0
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [step["completed_bytes"] for step in steps[1:3]] == [GIB, 2 * GIB]
    assert steps[-1]["files"] == ["/models/m.gguf"]
    assert nodes.pulled == ["llama", "llama"]


def test_a_pull_on_a_machine_whose_disk_is_full_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = PlainNodes(READY, SILENT)
    nodes.ends = NoRoomOnDisk("m.gguf (4.0 GiB) does not fit on a: the disk of /models is full")
    assert ran(nodes, "pull", "llama", "--node", "a") == 1
    assert "m.gguf (4.0 GiB) does not fit on a: the disk of /models is full" in capsys.readouterr().err
    assert ran(nodes, "pull", "llama", "--node", "b") == 1
    assert "the agent of b did not answer" in capsys.readouterr().err
    assert ran(nodes, "pull", "llama", "--node", "a", "--models-dir", "/x") == 2
    assert "--models-dir is a folder of this machine" in capsys.readouterr().err


def test_the_list_says_why_no_machine_can_be_reached(capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(PlainNodes(problem="Ray's broker ended"), "nodes", "list") == 0
    assert capsys.readouterr().out == "no machine can be reached through Ray: Ray's broker ended\n"
    ran(PlainNodes(), "nodes", "list")
    assert capsys.readouterr().out == "no machine has answered yet\n"


def planned(*argv: str) -> int:
    plans, status = over_machines()
    models = (ServedModel(status.name, ModelKind.TEXT, 1),)
    with running(PlainOperator(status), models=models, planner=plans) as address:
        return main(["plan", *argv, "--address", address])


def test_a_served_model_is_planned_on_the_machine_where_it_loads_soonest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert planned("--served", "llama-70b") == 0
    first, *devices, files = capsys.readouterr().out.splitlines()
    assert first == "llama-70b: 81 of 81 layers on GPUs, the output layer counted"
    assert [line.split()[0] for line in devices] == ["b", "b", "a", "a", "c", "c"]
    assert ", layers 0-" in devices[0]
    assert devices[2].endswith(" may be")
    assert devices[4].endswith("left out: no file /models/llama-70b.gguf")
    assert files == "Where its files are: b: warm, 4.0 s; a: absent, 2 m 40 s; c: absent"
    assert planned("--served", "llama-70b", "--n-ctx", "131072", "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["fits"], told["recipe"]["n_ctx"]) == (False, 131072)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("m.gguf",), "a file is given"),
        (("--gpus", "24GiB"), "--gpus does not go with --served"),
        (("--reserve-mib", "100"), "--reserve-mib does not go with --served"),
        (("--draft", "d.gguf"), "--draft does not go with --served"),
    ],
)
def test_what_the_daemon_decides_is_not_a_flag_of_its_plan(
    flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned("--served", "llama-70b", *flags) == 2
    assert says in capsys.readouterr().err
