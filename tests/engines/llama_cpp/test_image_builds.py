"""llama-server in an image, asked through stand-ins of the container engines."""

from pathlib import Path

import pytest

from cotenant.domain.errors import EngineMissing
from cotenant.domain.launching import LauncherKind, LaunchOptions
from cotenant.engines.llama_cpp.image_builds import image_build

DOCKER = """#!/bin/sh
echo "$*" >> {folder}/calls
case "$*" in
"image inspect"*) cat {folder}/id 2>/dev/null || {{ echo "Error: No such image: x"; exit 1; }};;
*"--entrypoint /app/llama-server"*--help) echo "--port PORT   port";;
*"--entrypoint /app/llama-server"*--version) echo "version: 6 (abc)";;
*) echo "executable file not found in PATH"; exit 127;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docker").write_text(DOCKER.format(folder=tmp_path))
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def terms(image: str) -> LaunchOptions:
    return LaunchOptions(LauncherKind.DOCKER, image)


def test_a_server_is_found_where_the_image_has_it_and_asked_once(folder: Path) -> None:
    (folder / "id").write_text("sha256:1")
    build, flags = image_build(terms("once"))
    assert (build.program, build.version) == ("/app/llama-server", "6 (abc)")
    assert flags.known
    asked = (folder / "calls").read_text().count(" --entrypoint ")
    image_build(terms("once"))
    assert (folder / "calls").read_text().count(" --entrypoint ") == asked


def test_an_image_that_was_made_anew_under_its_name_is_asked_again(folder: Path) -> None:
    (folder / "id").write_text("sha256:1")
    image_build(terms("anew"))
    asked = (folder / "calls").read_text().count(" --entrypoint ")
    (folder / "id").write_text("sha256:2")
    image_build(terms("anew"))
    assert (folder / "calls").read_text().count(" --entrypoint ") == 2 * asked


def test_the_image_is_asked_without_network_rights_or_root(folder: Path) -> None:
    (folder / "id").write_text("sha256:1")
    image_build(terms("walls"))
    asked = [line for line in (folder / "calls").read_text().splitlines() if "--entrypoint" in line]
    for wall in ("--network=none", "--cap-drop=all", "--user=65534:65534", "--pull=never", "--rm"):
        assert all(wall in line for line in asked)


def test_an_image_that_is_not_there_is_told_with_the_command_that_fetches_it(folder: Path) -> None:
    with pytest.raises(EngineMissing, match="docker has no image x: Error: No such image: x") as told:
        image_build(terms("x"))
    assert "docker pull x" in told.value.hint


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (
            "Cannot connect to the Docker daemon at unix:///run/docker.sock. Is the docker daemon running?",
            "systemctl start docker",
        ),
        (
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
            "docker",
        ),
    ],
)
def test_a_docker_that_does_not_answer_is_not_told_as_a_missing_image(
    folder: Path, said: str, hint: str
) -> None:
    (folder / "docker").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    with pytest.raises(EngineMissing, match="docker cannot look for x") as told:
        image_build(terms("x"))
    assert hint in told.value.hint
    assert "pull" not in told.value.hint


def test_an_image_without_a_server_names_what_was_tried(folder: Path) -> None:
    (folder / "id").write_text("sha256:1")
    (folder / "docker").write_text(DOCKER.format(folder=folder).replace("/app/", "/opt/"))
    with pytest.raises(EngineMissing, match="no llama-server that lists its options") as told:
        image_build(terms("other"))
    assert "not found in PATH" in told.value.message


def test_an_image_file_that_is_not_there_is_told(folder: Path) -> None:
    (folder / "apptainer").write_text("#!/bin/sh\n")
    (folder / "apptainer").chmod(0o755)
    with pytest.raises(EngineMissing, match="No such file"):
        image_build(LaunchOptions(None, str(folder / "absent.sif")))
