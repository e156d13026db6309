import pytest
import yaml

from cotenant.domain.units import GIB, MIB
from cotenant.services.compose.importing import import_services
from cotenant.services.model import ServiceRole


def imported(folder, services: dict):
    path = folder / "docker-compose.yml"
    path.write_text(yaml.safe_dump({"services": services}))
    return import_services([path])


def test_labels_say_what_a_service_needs(tmp_path):
    labels = {
        "cotenant.vram_mib": 22221,
        "cotenant.role": "LLM",
        "cotenant.latency_critical": True,
        "cotenant.model": "Nemotron-3-Nano-30B (Q4_K_M)",
        "cotenant.budget_env": "BUDGET",
        "cotenant.health": 8091,
    }
    (service,), _ = imported(tmp_path, {"ai-llm": {"labels": labels}, "web": {"image": "x"}})

    assert service.name == "ai-llm"
    assert service.vram_bytes == 22221 * MIB
    assert service.role is ServiceRole.LLM
    assert service.latency_critical
    assert service.model == "Nemotron-3-Nano-30B (Q4_K_M)"
    assert service.budget_env == "BUDGET"
    assert service.health_url == "http://127.0.0.1:8091/health"


def test_a_budget_variable_that_is_there_is_taken_up(tmp_path):
    (service,), _ = imported(
        tmp_path, {"ai-enrichment": {"gpus": "all", "environment": ["VRAM_BUDGET_GB=6.8"]}}
    )

    assert service.budget_env == "VRAM_BUDGET_GB"
    assert service.vram_bytes == int(6.8 * GIB)


def test_what_makes_no_sense_is_left_out_and_noted(tmp_path):
    labels = {
        "cotenant.vram_mib": "-5",
        "cotenant.role": "boss",
        "cotenant.latency_critical": "perhaps",
        "cotenant.budget_env": "NOT A NAME",
        "cotenant.health": "ftp://x",
        "cotenant.modell": "x",
    }
    (service,), notes = imported(tmp_path, {"a": {"labels": labels}})

    assert service.vram_bytes is None
    assert service.budget_env is None
    assert service.health_url is None
    told = "\n".join(notes)
    for name in labels:
        assert name in told
    assert "Did you mean cotenant.model?" in told


def test_surroundings_that_get_in_the_way_are_noted(tmp_path):
    services = {
        "a": {"gpus": "all", "environment": {"CUDA_VISIBLE_DEVICES": 1}, "ports": ["8091:80"]},
        "b": {"extends": "a"},
    }
    told = "\n".join(imported(tmp_path, services)[1])

    assert "a: it sets CUDA_VISIBLE_DEVICES=1" in told
    assert "a: it has no health check and publishes 8091" in told
    assert "b: its request for GPUs comes from `extends`" in told


@pytest.mark.parametrize(
    ("wanted", "gpu_count"),
    [
        ({"count": 1}, None),
        ({"count": 2}, 2),
        ({"count": "2"}, 2),
        ({"count": "all"}, "all"),
        ({"count": -1}, "all"),
        ({"device_ids": ["0", "1"]}, 2),
        ({"device_ids": ["GPU-3a, GPU-4b"]}, 2),
        ({"device_ids": ["1"]}, None),
        ({"device_ids": ["all"]}, None),
        ({}, None),
        ({"count": "many"}, None),
    ],
)
def test_the_number_of_gpus_is_kept(tmp_path, wanted, gpu_count):
    entry = {"driver": "nvidia", "capabilities": ["gpu"], **wanted}
    (service,), notes = imported(
        tmp_path, {"a": {"deploy": {"resources": {"reservations": {"devices": [entry]}}}}}
    )
    assert service.gpu_count == gpu_count
    assert any("names GPU" in note for note in notes) == (wanted.get("device_ids", ["all"]) != ["all"])
    (service,), _ = imported(tmp_path, {"a": {"gpus": [entry]}})
    assert service.gpu_count == gpu_count


@pytest.mark.parametrize(
    ("definition", "gpu_count"),
    [
        ({"gpus": "all"}, "all"),
        ({"gpus": 2}, 2),
        ({"gpus": "3"}, 3),
        ({"gpus": -1}, "all"),
        ({"runtime": "nvidia", "environment": ["NVIDIA_VISIBLE_DEVICES=0,1"]}, 2),
        ({"runtime": "nvidia", "environment": ["NVIDIA_VISIBLE_DEVICES=all"]}, None),
        ({"devices": ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]}, 2),
    ],
)
def test_the_number_of_gpus_is_kept_from_other_spellings(tmp_path, definition, gpu_count):
    (service,), _ = imported(tmp_path, {"a": definition})
    assert service.gpu_count == gpu_count


def test_a_file_without_such_services_has_none(tmp_path):
    assert imported(tmp_path, {"web": {"image": "x"}}) == ((), [])
