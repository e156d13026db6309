import hashlib
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.errors import EngineInstallFailed
from cotenant.engines.llama_cpp.install import (
    WHEELS_URL,
    Flavour,
    InstallPlan,
    System,
    install,
    plan_install,
    shown,
)

MODERN = System(cuda_version="12.8", rocm_version="6.4.1", glibc=(2, 36))


def index_of(plan: InstallPlan) -> str:
    command = list(plan.command)
    return command[command.index("--index-url") + 1].removeprefix(f"{WHEELS_URL}/")


def unverified(flavour: Flavour, system: System = MODERN) -> InstallPlan:
    return plan_install(flavour, system, verify=False)


@pytest.mark.parametrize(
    ("driver", "index"),
    [
        ("12.4", "cu128"),
        ("12.8", "cu128"),
        ("13.0", "cu128"),
        ("13.2", "cu132"),
        ("14.0", "cu132"),
        (None, "cu128"),
    ],
)
def test_the_cuda_index_follows_the_driver(driver: str | None, index: str) -> None:
    assert index_of(unverified(Flavour.CUDA, replace(MODERN, cuda_version=driver))) == index


def test_the_other_flavours_have_their_own_index() -> None:
    assert index_of(unverified(Flavour.VULKAN)) == "vulkan"
    assert index_of(unverified(Flavour.ROCM)) == "rocm-6.4.1"
    assert index_of(unverified(Flavour.ROCM, replace(MODERN, rocm_version="7.2"))) == "rocm-7.2.4"
    assert "--index-url" not in plan_install(Flavour.CPU, MODERN).command


def test_the_command_replaces_the_build_of_the_same_name_in_this_environment() -> None:
    command = unverified(Flavour.CUDA).command
    assert command[:4] == (sys.executable, "-m", "pip", "install")
    assert command[-1].startswith("xllamacpp==")
    assert {"--force-reinstall", "--no-deps", "--only-binary"} <= set(command)


@pytest.mark.parametrize(
    ("system", "says"),
    [
        (replace(MODERN, glibc=(2, 31)), "need glibc 2.35 and this machine has 2.31"),
        (replace(MODERN, cuda_version="11.8"), "no wheel for CUDA 11.8"),
    ],
)
def test_a_machine_on_which_no_wheel_can_work_is_told_so(system: System, says: str) -> None:
    with pytest.raises(EngineInstallFailed, match=says) as refused:
        plan_install(Flavour.CUDA, system)
    assert refused.value.hint


def test_libraries_that_the_cuda_wheel_does_not_bring_are_named() -> None:
    *notes, last = unverified(Flavour.CUDA).notes
    assert all("libcudart.so.12" in note or "libcublas.so.12" in note for note in notes)
    assert last == "The wheel is not verified."


@pytest.mark.slow
def test_a_failure_is_pips_last_line_and_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    plan = plan_install(Flavour.CPU, MODERN, index_url=str(tmp_path))
    said: list[str] = []
    with pytest.raises(EngineInstallFailed) as failed:
        install(plan, say=said.append)
    assert failed.value.message.startswith("pip failed: No matching distribution found for xllamacpp==")
    assert "--find-links" in failed.value.hint
    assert "--newest" in failed.value.hint
    assert any("ERROR" in line for line in said)


def test_only_the_known_wheels_of_one_version_are_installed() -> None:
    *command, option, file = plan_install(Flavour.CPU, MODERN).command
    assert (command[-1], option) == ("--require-hashes", "-r")
    version, *hashes = Path(file).read_text().replace("\\", "").split()
    assert re.fullmatch(r"xllamacpp==[\d.]+", version)
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
    assert len(hashes) >= 2  # both processors


@pytest.mark.parametrize("flavour", [Flavour.CUDA, Flavour.ROCM, Flavour.VULKAN])
def test_a_wheel_whose_hash_is_not_known_is_taken_only_by_a_word(flavour: Flavour) -> None:
    with pytest.raises(EngineInstallFailed, match="cannot be verified") as refused:
        plan_install(flavour, MODERN)
    assert refused.value.hint
    assert "--no-verify" in refused.value.hint
    # Also of an index without known hashes the version is the one that was tested.
    tested = Path(plan_install(Flavour.CPU, MODERN).command[-1]).read_text().split()[0]
    assert unverified(flavour).command[-1] == tested
    assert plan_install(flavour, MODERN, newest=True).command[-1] == "xllamacpp"
    assert plan_install(flavour, MODERN, newest=True).notes[-1] == "The wheel is not verified."


@pytest.mark.slow
@pytest.mark.engine
def test_a_wheel_of_a_local_folder_is_installed_and_what_is_there_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = pinned_to_a_local_wheel(tmp_path, monkeypatch)
    # Beside the environment of the tests, whose own engine is to stay.
    elsewhere = replace(plan, command=(*plan.command, "--target", str(tmp_path / "site")))
    build = install(elsewhere, say=lambda _: None)
    assert (tmp_path / "site" / "xllamacpp" / "__init__.py").exists()
    assert build.problem is None


@pytest.mark.slow
def test_a_wheel_that_was_exchanged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = pinned_to_a_local_wheel(tmp_path, monkeypatch)
    with zipfile.ZipFile(tmp_path / "wheels" / "xllamacpp-9.9-py3-none-any.whl", "a") as wheel:
        wheel.writestr("xllamacpp/more.py", "")
    elsewhere = replace(plan, command=(*plan.command, "--target", str(tmp_path / "site")))
    with pytest.raises(EngineInstallFailed, match="its hash is another than the known one"):
        install(elsewhere, say=lambda _: None)
    assert not (tmp_path / "site").exists()


def pinned_to_a_local_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> InstallPlan:
    write_wheel(folder / "wheels")
    (wheel,) = (folder / "wheels").iterdir()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "pins").mkdir()
    (folder / "pins" / "cpu.txt").write_text(f"xllamacpp==9.9 --hash=sha256:{digest}\n")
    monkeypatch.setattr("cotenant.engines.llama_cpp.install._PINS", folder / "pins")
    return plan_install(Flavour.CPU, MODERN, index_url=str(folder / "wheels"))


def test_the_command_is_shown_as_one_would_type_it() -> None:
    assert shown(unverified(Flavour.VULKAN).command).startswith("python -m pip install ")


def write_wheel(folder: Path) -> None:
    folder.mkdir()
    info = "xllamacpp-9.9.dist-info"
    files = {
        "xllamacpp/__init__.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: xllamacpp\nVersion: 9.9\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / "xllamacpp-9.9-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
