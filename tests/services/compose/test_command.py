from pathlib import Path

import pytest

from cotenant.domain.errors import ContainerEngineMissing
from cotenant.services.compose.command import ComposeCommand, find_compose, reason
from tests.support.containers.fake_docker import install

ANSWERS = {"compose version": {"out": "v2.29"}, "version --format": {"out": "27.1"}}
NO_DAEMON = {"err": "Cannot connect to the Docker daemon at unix:///x. Is it running?\n", "rc": 1}


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


async def test_nothing_installed_is_told_with_what_was_tried(path):
    with pytest.raises(ContainerEngineMissing) as raised:
        await find_compose()

    for name in ("podman-compose", "podman compose", "docker compose"):
        assert name in raised.value.message
    assert "No such file" in raised.value.message
    assert raised.value.hint


async def test_docker_compose_is_found_where_it_is_the_only_one(path):
    install(path, ANSWERS)
    assert await find_compose() == ComposeCommand(("docker", "compose"), ("docker",))


async def test_podman_compose_comes_first_where_its_engine_answers(path):
    install(path, ANSWERS)
    install(path, {}, "podman-compose")
    assert (await find_compose()).argv == ("docker", "compose")
    install(path, {"version": {"out": "5.0"}}, "podman")
    assert await find_compose() == ComposeCommand(("podman-compose",), ("podman",))


async def test_a_podman_without_compose_is_passed_over(path):
    install(path, ANSWERS)
    install(path, {"compose": {"err": "Error: unrecognized command `podman compose`\n", "rc": 125}}, "podman")
    assert (await find_compose()).argv == ("docker", "compose")


async def test_a_daemon_that_does_not_run_is_no_engine(path):
    install(path, {**ANSWERS, "version --format": NO_DAEMON})
    with pytest.raises(ContainerEngineMissing, match="Cannot connect to the Docker daemon"):
        await find_compose()


async def test_a_configured_command_is_the_only_one_asked(path):
    install(path, ANSWERS)
    with pytest.raises(ContainerEngineMissing, match="nerdctl"):
        await find_compose(["nerdctl", "compose"])
    install(path, ANSWERS, "my-compose")
    assert await find_compose(["my-compose"]) == ComposeCommand(("my-compose",), ("docker",))


@pytest.mark.slow
async def test_a_command_that_does_not_answer_is_left_in_time(path, monkeypatch):
    monkeypatch.setattr("cotenant.services.compose.command._PROBE_TIMEOUT_S", 0.3)
    install(path, {"version": {"hang": True}})
    with pytest.raises(ContainerEngineMissing, match=r"did not answer within 0\.3 s"):
        await find_compose()


def test_a_call_is_an_argument_vector_with_the_generated_files_last():
    command = ComposeCommand(("docker", "compose"), ("docker",))
    argv = command.call("p", [Path("/x/a b.yml")], [Path("/x/r.yml"), Path("/x/o.yml")], ["up", "; rm -rf /"])

    named = ["-f", "/x/a b.yml", "-f", "/x/r.yml", "-f", "/x/o.yml"]
    assert argv == ["docker", "compose", "-p", "p", *named, "up", "; rm -rf /"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            'Error: no container with name or ID "a" found: no such container\n'
            "3f\nError: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=7\n"
            "Error: unable to start container\n",
            "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=7",
        ),
        ("Traceback\n  File x\nValueError: can't merge\n", "ValueError: can't merge"),
        (
            "docker: unknown command: docker compose\n\nRun 'docker --help'\n",
            "docker: unknown command: docker compose",
        ),
        (" Container a  Recreate\nit went wrong.\n", "it went wrong"),
        ("Error: no such container\n", "Error: no such container"),
        ("", "no output"),
    ],
)
def test_the_engines_own_line_is_the_reason(output, expected):
    assert reason(output) == expected
