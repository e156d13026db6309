"""`image` and `launcher` of a model."""

import pytest

from cotenant.config.changes import diff
from cotenant.domain.errors import BadSetting
from cotenant.domain.launching import ON_HOST, LauncherKind, LaunchOptions
from tests.config.conftest import Reader

MODEL = "models:\n- path: models/tiny.gguf\n"


def test_an_engine_runs_on_the_host_unless_an_image_is_named(read: Reader) -> None:
    assert read(MODEL).models[0].launch == ON_HOST
    assert read(f"{MODEL}  image: ghcr.io/org/llama:1").models[0].launch == LaunchOptions(
        None, "ghcr.io/org/llama:1"
    )
    told = read(f"{MODEL}  image: llama:1\n  launcher: docker").models[0].launch
    assert told == LaunchOptions(LauncherKind.DOCKER, "llama:1")
    assert read(f"{MODEL}  launcher: host").models[0].launch == LaunchOptions(LauncherKind.HOST)


def test_an_image_that_is_a_file_is_meant_against_the_folder_of_the_configuration(read: Reader) -> None:
    given = read(f"{MODEL}  image: images/llama.sif")
    image = given.models[0].launch.image
    assert image is not None
    assert image.startswith("/")
    assert image.endswith("/images/llama.sif")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("launcher: podman", "podman needs an image"),
        ("launcher: host\n  image: x", "launcher host runs no image"),
        ("launcher: lxc\n  image: x", "lxc"),
        ("image: --privileged", "cannot be an image"),
        ("image: a b", "cannot be an image"),
        ("image: [a]", "models"),
    ],
)
def test_what_does_not_go_together_is_refused(read: Reader, text: str, told: str) -> None:
    with pytest.raises(BadSetting) as caught:
        read(f"{MODEL}  {text}")
    assert told in caught.value.message


def test_a_model_that_is_served_elsewhere_has_no_image(read: Reader) -> None:
    with pytest.raises(BadSetting, match="remote takes no image"):
        read("models:\n- {engine: remote, name: far, address: 'http://h/v1', image: x}")


def test_another_image_loads_a_model_anew(read: Reader) -> None:
    old = read(f"{MODEL}  image: llama:1")
    assert diff(old, read(f"{MODEL}  image: llama:2")).reloaded
    assert not diff(old, read(f"{MODEL}  image: llama:1")).reloaded
