from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import EngineBuild, EngineDevice, EngineForm
from cotenant.domain.errors import EngineLacksDevice, EngineMissing
from cotenant.domain.vendors import Vendor
from cotenant.engines.llama_cpp.builds import (
    Builds,
    choose,
    choose_for_rpc,
    discover,
    embedded_build,
    server_build,
    server_flags,
)
from tests.support.engines.orders import fake_server, gpu

CUDA0 = EngineDevice("CUDA0", "NVIDIA GeForce RTX 3090")
CUDA1 = EngineDevice("CUDA1", "NVIDIA GeForce RTX 3090")
VULKAN_IGPU = EngineDevice("Vulkan0", "AMD Radeon Graphics")


def build(form: EngineForm, *devices: EngineDevice, problem: str | None = None) -> EngineBuild:
    return EngineBuild(EngineKind.LLAMA_CPP, form, "program", "1", devices, problem)


SERVER, EMBEDDED = EngineForm.SERVER, EngineForm.EMBEDDED


@pytest.mark.parametrize("needed", [[], [gpu(0)]], ids=["host", "gpu"])
def test_a_configured_server_comes_first(needed: list[Device]) -> None:
    configured = build(SERVER, CUDA0)
    assert choose(Builds(configured, build(EMBEDDED, CUDA0), None), needed) is configured


def test_a_configured_server_without_the_gpu_is_refused_and_not_passed_over() -> None:
    with pytest.raises(EngineLacksDevice, match="llama-server 1 sees no GPU"):
        choose(Builds(build(SERVER), build(EMBEDDED, CUDA0), None), [gpu(0)])


def test_the_embedded_engine_comes_before_the_server_on_path() -> None:
    embedded, on_path = build(EMBEDDED, CUDA0), build(SERVER, CUDA0)
    assert choose(Builds(None, embedded, on_path), [gpu(0)]) is embedded


def test_the_server_on_path_is_used_where_it_alone_sees_the_gpu() -> None:
    embedded, on_path = build(EMBEDDED), build(SERVER, CUDA0)
    assert choose(Builds(None, embedded, on_path), [gpu(0)]) is on_path
    assert choose(Builds(None, embedded, on_path), []) is embedded


def test_a_gpu_that_no_build_sees_is_an_error_with_the_command_that_helps() -> None:
    with pytest.raises(EngineLacksDevice) as refused:
        choose(Builds(None, build(EMBEDDED), None), [gpu(0)], cuda_version="12.8")
    assert "GPU 0 NVIDIA GeForce RTX 3090" in refused.value.message
    assert "`cotenant engine install cuda` (this driver speaks CUDA 12.8)" in refused.value.hint


def test_amds_cards_need_the_engine_for_rocm_though_their_ids_look_like_nvidias() -> None:
    card = Device(DeviceId("GPU-1122334455667788"), DeviceKind.GPU, "Instinct MI210", vendor=Vendor.AMD)
    with pytest.raises(EngineLacksDevice) as refused:
        choose(Builds(None, build(EMBEDDED), None), [card], cuda_version="12.8")
    assert "`cotenant engine install rocm`, or" in refused.value.hint


def test_every_needed_gpu_must_be_seen() -> None:
    one, two = build(EMBEDDED, CUDA0), build(SERVER, CUDA0, CUDA1)
    assert choose(Builds(None, one, two), [gpu(0), gpu(1)]) is two


def test_another_gpu_than_the_needed_one_does_not_do() -> None:
    with pytest.raises(EngineLacksDevice, match=r"\(Vulkan\)"):
        choose(Builds(None, build(EMBEDDED, VULKAN_IGPU), None), [gpu(0)])


def test_other_backends_are_matched_by_name() -> None:
    card = Device(DeviceId("pci-1"), DeviceKind.GPU, "Radeon Graphics")
    assert choose(Builds(None, build(EMBEDDED, VULKAN_IGPU), None), [card]).sees_gpus


def test_a_broken_build_is_passed_over_and_named_when_it_is_the_last() -> None:
    broken, on_path = build(EMBEDDED, problem="the library libgomp.so.1 is missing"), build(SERVER)
    assert choose(Builds(None, broken, on_path), []) is on_path
    with pytest.raises(EngineMissing, match="libgomp"):
        choose(Builds(None, broken, None), [])
    with pytest.raises(EngineMissing, match="none is installed"):
        choose(Builds(None, None, None), [])


def test_a_server_is_asked_for_its_version_and_devices_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = "  CUDA0: NVIDIA RTX A5500 (24 GB) (24564 MiB, 19304 MiB free)\n  CUDA1: X (8 MiB, 4 MiB free)"
    monkeypatch.setenv("FAKE_DEVICES", listed)
    program = fake_server(tmp_path)
    found = server_build(program)
    assert found.version == "9.9 (fake)"
    assert found.devices == (
        EngineDevice("CUDA0", "NVIDIA RTX A5500 (24 GB)", 24564 << 20, 19304 << 20),
        EngineDevice("CUDA1", "X", 8 << 20, 4 << 20),
    )
    monkeypatch.setenv("FAKE_DEVICES", "  (none)")
    assert server_build(program) is found
    program.write_text(program.read_text() + "\n# replaced\n")
    assert server_build(program).devices == ()


def test_a_program_that_fails_is_a_build_with_a_problem(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho libcudart.so.12: cannot open shared object file >&2\nexit 127\n")
    program.chmod(0o755)
    assert server_build(program).problem == "the library libcudart.so.12 is missing"


def test_a_program_that_is_no_llama_server_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    found = server_build(program)
    assert found.problem == "it does not report its version"
    with pytest.raises(EngineMissing, match="lists no options"):
        server_flags(found)


def test_a_configured_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="is not a program"):
        discover(tmp_path / "missing")


def test_a_server_on_path_is_found_and_not_listed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = fake_server(tmp_path).rename(tmp_path / "llama-server")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert discover().on_path == server_build(program)
    configured = discover(program)
    assert configured.configured == server_build(program)
    assert configured.on_path is None


@pytest.mark.engine
def test_the_embedded_engine_is_installed_and_works() -> None:
    found = embedded_build()
    assert found is not None
    assert found.problem is None
    assert found.version


def test_only_a_build_with_rpc_shares_a_model_with_other_machines() -> None:
    lends = replace(build(SERVER, CUDA0), rpc_server="/opt/ggml-rpc-server")
    assert choose_for_rpc(Builds(None, build(EMBEDDED, CUDA0), lends), [gpu(0)]) is lends
    with pytest.raises(
        EngineMissing, match="can share a model with other machines: llama-server 1"
    ) as raised:
        choose_for_rpc(Builds(build(SERVER, CUDA0), None, lends), [gpu(0)])
    assert "-DGGML_RPC=ON" in raised.value.hint


@pytest.mark.parametrize("name", ["ggml-rpc-server", "rpc-server", None])
def test_a_servers_rpc_server_is_beside_it(tmp_path: Path, name: str | None) -> None:
    server = tmp_path / "llama-server"
    server.write_text(
        "#!/bin/sh\ncase $1 in --version) echo 'version: 7';; --help) echo '--rpc SERVERS  servers';; esac\n"
    )
    server.chmod(0o755)
    if name:
        (tmp_path / name).touch()
    assert server_build(server).rpc_server == (str(tmp_path / name) if name else None)
