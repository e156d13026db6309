from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.config.configuration import Configuration
from cotenant.doctor import containers
from cotenant.doctor.findings import Level
from cotenant.doctor.host_context import HostContext
from cotenant.services.model import Service, ServicesSettings
from tests.doctor.support import levels, machine, only, program, write
from tests.support.gpus.fake_nvml import PaperCard

CARD = PaperCard("GPU-a")
SPEC = """\
cdiVersion: "0.5.0"
kind: nvidia.com/gpu
devices:
  - name: "0"
    containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}
containerEdits:
  mounts: [{hostPath: /usr/lib/libcuda.so.550.54.15, containerPath: /usr/lib/libcuda.so.1}]
"""


def with_services(host: HostContext) -> HostContext:
    items = (Service("ai-llm"), Service("ai-off", enabled=False))
    file = host.state_dir / "compose.yml"
    file.write_text("name: ours\nservices: {ai-llm: {}, ai-off: {}}\n")
    services = ServicesSettings(compose_files=(file,), output_dir=Path("config"), items=items)
    return replace(host, configuration=Configuration(services=services))


def test_a_machine_without_containers_is_well_unless_services_need_them(tmp_path: Path) -> None:
    host = machine(tmp_path, CARD)
    looks = (containers.docker, containers.podman, containers.compose, containers.apptainer)

    assert {level for look in looks for level in levels(look(host))} == {Level.OK}
    assert list(containers.toolkit(host)) == list(containers.cdi(host)) == []
    needing = with_services(host)
    assert levels(containers.docker(needing)) == levels(containers.podman(needing)) == [Level.PROBLEM]
    assert levels(containers.compose(needing)) == [Level.PROBLEM]


@pytest.mark.parametrize(
    ("script", "level", "says", "mend"),
    [
        (
            """echo '{"ServerVersion": "27.1", "Runtimes": {"nvidia": {}, "runc": {}}}'""",
            Level.OK,
            "docker 27.1 runs and can give containers GPUs",
            "",
        ),
        (
            """echo '{"ServerVersion": "27.1", "Runtimes": {"runc": {}}}'""",
            Level.WARNING,
            "without NVIDIA's runtime",
            "nvidia-ctk runtime configure --runtime=docker",
        ),
        (
            """echo 'permission denied while trying to connect to the Docker daemon socket' >&2; exit 1""",
            Level.WARNING,
            "permission denied",
            "usermod -aG docker",
        ),
        (
            """echo '{"ServerErrors": ["Cannot connect to the Docker daemon at unix:///var/run/docker.sock."]}'""",
            Level.WARNING,
            "Cannot connect",
            "systemctl start docker",
        ),
        ("echo nonsense; exit 0", Level.WARNING, "without NVIDIA's runtime", "nvidia-ctk"),
    ],
    ids=["well", "no runtime", "no right", "no daemon", "nonsense"],
)
def test_docker_is_asked_and_its_answer_judged(
    tmp_path: Path, script: str, level: Level, says: str, mend: str
) -> None:
    program(tmp_path, "docker", script)

    (found,) = containers.docker(machine(tmp_path, CARD))
    assert found.level is level
    assert says in found.seen
    assert mend in found.fix


def test_a_podman_that_fails_says_why(tmp_path: Path) -> None:
    program(tmp_path, "podman", "echo 'Error: cannot clone: Operation not permitted' >&2; exit 125")
    assert "cannot clone" in only(containers.podman(machine(tmp_path)), Level.WARNING).seen

    program(tmp_path, "podman", """echo '{"version": {"Version": "5.2.1"}}'""")
    assert only(containers.podman(machine(tmp_path)), Level.OK).seen == "podman 5.2.1 works"


def test_the_first_compose_command_that_works_is_named(tmp_path: Path) -> None:
    program(tmp_path, "podman-compose", "exit 1")
    program(tmp_path, "docker", "exit 0")

    assert only(containers.compose(machine(tmp_path)), Level.OK).seen == "docker compose works"


def test_the_compose_command_of_the_configuration_is_the_one_that_must_work(tmp_path: Path) -> None:
    services = ServicesSettings((tmp_path / "compose.yml",), tmp_path, command=("ours", "compose"))
    host = machine(tmp_path, configuration=Configuration(services=services))
    program(tmp_path, "podman-compose", "exit 0")
    missing = only(containers.compose(host), Level.PROBLEM)
    assert "ours compose: there is no ours" in missing.seen
    assert "services.compose.command" in missing.fix

    program(tmp_path, "ours", f"touch {tmp_path}/ran")
    assert "is not run" in only(containers.compose(host), Level.UNKNOWN).seen
    assert not (tmp_path / "ran").exists()

    known = machine(
        tmp_path, configuration=Configuration(services=replace(services, command=("docker", "compose")))
    )
    program(tmp_path, "docker", '[ "$*" = "compose version" ]')
    assert only(containers.compose(known), Level.OK).seen == "docker compose works"


def test_a_toolkit_that_is_missing_is_told_where_it_matters(tmp_path: Path) -> None:
    program(tmp_path, "podman", "exit 0")
    assert list(containers.toolkit(machine(tmp_path))) == []
    assert "nvidia-ctk" in only(containers.toolkit(machine(tmp_path, CARD)), Level.WARNING).seen

    program(tmp_path, "nvidia-ctk", "echo 'NVIDIA Container Toolkit CLI version 1.16.2'; echo 'commit: x'")
    assert only(containers.toolkit(machine(tmp_path, CARD)), Level.OK).seen.endswith("version 1.16.2")


def test_a_cdi_specification_is_held_against_cards_and_files(tmp_path: Path) -> None:
    program(tmp_path, "podman", "exit 0")
    host = machine(tmp_path, CARD)
    assert "there is no CDI specification" in only(containers.cdi(host), Level.WARNING).seen

    write(tmp_path, "/etc/cdi/nvidia.yaml", SPEC)
    stale = only(containers.cdi(host), Level.PROBLEM)
    assert "/dev/nvidia0, /usr/lib/libcuda.so.550.54.15" in stale.seen
    assert stale.fix.startswith("sudo nvidia-ctk cdi generate")

    write(tmp_path, "/dev/nvidia0", "")
    write(tmp_path, "/usr/lib/libcuda.so.550.54.15", "")
    assert levels(containers.cdi(host)) == [Level.OK]

    write(tmp_path, "/etc/cdi/nvidia.yaml.old", SPEC.replace("550.54.15", "535.1"))
    assert levels(containers.cdi(host)) == [Level.OK], "no container engine reads such a file"

    two = machine(tmp_path, CARD, PaperCard("GPU-b"))
    assert "does not name GPU 1" in only(containers.cdi(two), Level.WARNING).seen


@pytest.mark.parametrize("content", ["{", "- just\n- a list\n", "\0", "kind: nvidia.com/gpu\ndevices: 7\n"])
def test_a_broken_specification_is_found_or_passed_over(tmp_path: Path, content: str) -> None:
    write(tmp_path, "/etc/cdi/nvidia.yaml", content)

    assert all(found.seen for found in containers.cdi(machine(tmp_path, CARD)))


def test_no_container_runs_unless_asked_for(tmp_path: Path) -> None:
    program(tmp_path, "podman", f"touch {tmp_path / 'ran'}")
    host = with_services(machine(tmp_path, CARD))

    assert list(containers.trial(host)) == list(containers.services(host)) == []
    assert not (tmp_path / "ran").exists()


TRIAL = """
case "$1" in
  images) echo 'localhost/other:1'; echo 'docker.io/library/debian:stable-slim' ;;
  run) {run} ;;
esac
"""


@pytest.mark.parametrize(
    ("run", "level", "says"),
    [
        ("echo /dev/nvidia0", Level.OK, "sees /dev/nvidia0"),
        ("true", Level.PROBLEM, "starts with a GPU and sees none"),
        ("echo 'unresolvable CDI devices nvidia.com/gpu=0' >&2; exit 125", Level.PROBLEM, "unresolvable"),
    ],
    ids=["seen", "not seen", "not started"],
)
def test_a_container_is_run_and_asked_what_it_sees(tmp_path: Path, run: str, level: Level, says: str) -> None:
    program(tmp_path, "podman", TRIAL.format(run=f'echo "$*" > {tmp_path / "argv"}; {run}'))
    host = machine(tmp_path, CARD, containers=True)

    (found,) = containers.trial(host)
    assert found.level is level
    assert says in found.seen
    argv = (tmp_path / "argv").read_text()
    assert "--pull=never" in argv
    assert "--device nvidia.com/gpu=0" in argv
    assert "docker.io/library/debian:stable-slim" in argv


def test_without_an_image_nothing_is_pulled(tmp_path: Path) -> None:
    program(tmp_path, "docker", "test $1 = images")
    (found,) = containers.trial(machine(tmp_path, CARD, containers=True))

    assert found.level is Level.UNKNOWN
    assert found.fix.startswith("docker pull")


@pytest.mark.parametrize(
    ("ps", "look", "level"),
    [
        ("echo ai-llm-1", "echo /dev/nvidia1", Level.OK),
        ("echo ai-llm-1", "true", Level.PROBLEM),
        ("echo ai-llm-1", "exit 126", Level.UNKNOWN),
        ("true", "true", Level.WARNING),
    ],
    ids=["sees it", "sees none", "no shell", "not running"],
)
def test_each_service_is_asked_for_its_gpu(tmp_path: Path, ps: str, look: str, level: Level) -> None:
    program(tmp_path, "docker", f'case "$1" in ps) {ps} ;; exec) {look} ;; esac')
    host = with_services(machine(tmp_path, CARD, containers=True))

    (found,) = containers.services(host)
    assert found.level is level
    assert "ai-llm" in found.seen


def test_a_service_of_that_name_in_another_project_is_not_asked(tmp_path: Path) -> None:
    ours = "label=com.docker.compose.project=ours --filter label=com.docker.compose.service=ai-llm"
    program(
        tmp_path,
        "docker",
        f'case "$*" in *"{ours}"*) echo ours ;; ps*) echo theirs ;; "exec ours "*) echo /dev/nvidia0 ;; esac',
    )
    host = with_services(machine(tmp_path, CARD, containers=True))
    assert only(containers.services(host), Level.OK).seen == "the service ai-llm sees /dev/nvidia0"

    (host.state_dir / "compose.yml").unlink()
    assert "cannot be read" in only(containers.services(host), Level.PROBLEM).seen
