from dataclasses import replace

import yaml

from cotenant.domain.devices import DeviceId
from cotenant.domain.units import GIB
from cotenant.domain.vendors import Vendor
from cotenant.services.compose.compose_files import read_project
from cotenant.services.compose.override import (
    ASSIGNMENT_LABEL,
    ASSIGNMENTS_NAME,
    OVERRIDE_NAME,
    RESET_NAME,
    assignment_label,
    labelled_assignment,
    render,
)
from cotenant.services.model import Assignment, DeviceNames, GpuRef, SavedConfiguration, Service, Strategy
from tests.services.compose.harness import AT, DEVICES, pin, saved

RESERVED = {
    "deploy": {
        "resources": {
            "reservations": {
                "devices": [
                    {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]},
                    {"driver": "cdi", "device_ids": ["v.com/tpu=$X"], "capabilities": ["tpu"]},
                ]
            }
        }
    }
}
SERVICES = [
    Service("ai-llm", vram_bytes=22 * GIB),
    Service("ai-enrichment", vram_bytes=int(6.8 * GIB), budget_env="VRAM_BUDGET_GB"),
]


def rendered(folder, definitions: dict, *assignments: Assignment, names=DeviceNames.INDEX):
    contents = all_rendered(folder, definitions, saved(7, *assignments), names)
    return contents[OVERRIDE_NAME], contents[RESET_NAME]


def all_rendered(folder, definitions: dict, configuration: SavedConfiguration, names=DeviceNames.INDEX):
    path = folder / "docker-compose.prod.yml"
    path.write_text(yaml.safe_dump({"services": definitions}))
    return render(
        configuration, SERVICES, DEVICES, read_project([path]), names, [path], path.parent / "config"
    )


def test_an_amd_card_is_given_by_its_device_files(tmp_path):
    own = {"devices": ["/dev/kfd:/dev/kfd", "/dev/dri", "/dev/snd"], "image": "rocm/vllm"}
    path = tmp_path / "docker-compose.prod.yml"
    path.write_text(yaml.safe_dump({"services": {"ai-llm": own, "ai-enrichment": {}}}))
    first, second = (
        replace(card, vendor=Vendor.AMD, name="Radeon", render_node=node)
        for card, node in zip(DEVICES, (128, None), strict=True)
    )
    project = read_project([path])
    assert [request.path for request in project.services["ai-llm"].gpus] == [("devices",)]
    contents = render(
        saved(7, pin("ai-llm", 0), pin("ai-enrichment", 1, 3.5)),
        SERVICES,
        (first, second),
        project,
        DeviceNames.INDEX,
        [path],
        tmp_path / "config",
    )
    written = yaml.safe_load(contents[OVERRIDE_NAME])["services"]
    assert "nvidia" not in contents[OVERRIDE_NAME]
    assert written["ai-llm"]["devices"] == [
        "/dev/kfd:/dev/kfd",
        "/dev/dri/renderD128:/dev/dri/renderD128",
        "/dev/snd",
    ]
    assert "devices: !reset null" in contents[RESET_NAME]
    assert written["ai-enrichment"]["devices"] == ["/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri"]
    assert written["ai-enrichment"]["environment"] == ["ROCR_VISIBLE_DEVICES=1", "VRAM_BUDGET_GB=3.5"]


def test_several_gpus_are_listed_and_all_are_asked_for_as_such(tmp_path):
    several = Assignment("ai-llm", 0, DEVICES[0].id, more=(GpuRef(1, DEVICES[1].id),))
    everything = replace(several, service="ai-enrichment", count="all")
    text, reset = rendered(tmp_path, {"ai-llm": RESERVED, "ai-enrichment": {}}, several, everything)
    assert "device_ids: ['0', '1']  # RTX A5500, RTX A400\n" in text
    assert "count: all  # RTX A5500, RTX A400\n" in text
    assert "devices: !reset null" in reset
    assert (
        f"device_ids: ['{DEVICES[0].id}', '{DEVICES[1].id}']"
        in rendered(tmp_path, {"ai-llm": {}}, several, names=DeviceNames.UUID)[0]
    )
    for each in (several, everything):
        read = labelled_assignment(each.service, {ASSIGNMENT_LABEL: assignment_label(each)})
        assert (read, read.count) == (each, each.count)
    files = all_rendered(tmp_path, {"ai-llm": {}}, saved(7, several))
    assert "ai-llm: { gpu: 0, gpus: [0, 1], vram_budget: null }" in files[ASSIGNMENTS_NAME]
    assert yaml.safe_load(files[ASSIGNMENTS_NAME])["assignments"]["ai-llm"]["gpus"] == [0, 1]


def test_several_amd_cards_are_given_by_their_device_files(tmp_path):
    cards = [
        replace(card, vendor=Vendor.AMD, render_node=node)
        for card, node in zip(DEVICES, (128, 129), strict=True)
    ]
    both = Assignment("ai-llm", 0, more=(GpuRef(1),))

    def written(devices):
        path = tmp_path / "docker-compose.prod.yml"
        path.write_text(yaml.safe_dump({"services": {"ai-llm": {}}}))
        contents = render(
            saved(7, both), SERVICES, devices, read_project([path]), DeviceNames.INDEX, [path], tmp_path
        )
        return yaml.safe_load(contents[OVERRIDE_NAME])["services"]["ai-llm"]

    assert written(cards)["devices"] == [
        "/dev/kfd:/dev/kfd",
        "/dev/dri/renderD128:/dev/dri/renderD128",
        "/dev/dri/renderD129:/dev/dri/renderD129",
    ]
    unknown = written([cards[0], replace(cards[1], render_node=None)])
    assert unknown["devices"] == ["/dev/kfd:/dev/kfd", "/dev/dri:/dev/dri"]
    assert unknown["environment"] == ["ROCR_VISIBLE_DEVICES=0,1"]


def test_a_budget_without_a_gpu_is_passed_on_and_read_back(tmp_path):
    text, _ = rendered(tmp_path, {"ai-enrichment": RESERVED}, pin("ai-enrichment", None, 2.5))
    service = yaml.safe_load(text)["services"]["ai-enrichment"]
    assert service["environment"] == ["VRAM_BUDGET_GB=2.5"]
    assert "deploy" not in service
    labels = {ASSIGNMENT_LABEL: service["labels"][ASSIGNMENT_LABEL]}
    assert labelled_assignment("ai-enrichment", labels) == pin("ai-enrichment", None, 2.5)


def test_the_override_has_the_documents_form(tmp_path):
    text, reset = rendered(
        tmp_path, {"ai-llm": {}, "ai-enrichment": {}}, pin("ai-llm", 0), pin("ai-enrichment", 1, 3.5)
    )

    assert text == (
        "# Made by Cotenant at 2025-01-23T10:30:00Z: configuration 7, manual.\n"
        "# Do not edit: the next save overwrites it. An edited file is overwritten only by force.\n"
        "# To change it: cotenant services set SERVICE=GPU, then cotenant services apply.\n"
        "# By hand: -f docker-compose.prod.yml -f config/docker-compose.gpu-override.yml\n"
        "\n"
        "services:\n"
        "  ai-llm:\n"
        "    labels:\n"
        "      cotenant.assignment: '{\"gpu\":0}'\n"
        "    deploy:\n"
        "      resources:\n"
        "        reservations:\n"
        "          devices:\n"
        "            - driver: nvidia\n"
        "              device_ids: ['0']  # RTX A5500\n"
        "              capabilities: [gpu]\n"
        "  ai-enrichment:\n"
        "    labels:\n"
        '      cotenant.assignment: \'{"gpu":1,"vram_budget":3.5}\'\n'
        "    deploy:\n"
        "      resources:\n"
        "        reservations:\n"
        "          devices:\n"
        "            - driver: nvidia\n"
        "              device_ids: ['1']  # RTX A400\n"
        "              capabilities: [gpu]\n"
        "    environment:\n"
        "      - VRAM_BUDGET_GB=3.5  # adjusted: it asks for 6.8\n"
    )
    assert reset is None


def test_devices_are_named_by_uuid_where_that_is_asked_for(tmp_path):
    text, _ = rendered(tmp_path, {"ai-llm": {}}, pin("ai-llm", 1), names=DeviceNames.UUID)
    assert f"device_ids: ['{DEVICES[1].id}']" in text


def test_a_gpu_is_followed_to_its_new_index_by_its_id(tmp_path):
    moved = Assignment("ai-llm", 1, DEVICES[0].id)
    assert "device_ids: ['0']  # RTX A5500" in rendered(tmp_path, {"ai-llm": {}}, moved)[0]


def test_a_gpu_that_is_gone_keeps_the_name_it_had(tmp_path):
    gone = Assignment("ai-llm", 5, DeviceId("GPU-gone"))
    assert "device_ids: ['5']\n" in rendered(tmp_path, {"ai-llm": {}}, gone)[0]
    assert "device_ids: ['GPU-gone']\n" in rendered(tmp_path, {"ai-llm": {}}, gone, names=DeviceNames.UUID)[0]


def test_unpinned_and_unknown_services_are_left_to_the_compose_file(tmp_path):
    text, reset = rendered(tmp_path, {"ai-llm": RESERVED}, pin("ai-llm", None), pin("ghost", 0))

    assert yaml.safe_load(text) == {"services": {}}
    assert reset is None


def test_what_a_service_asks_for_itself_is_dropped_first_and_the_rest_kept(tmp_path):
    definitions = {
        "ai-llm": {**RESERVED, "devices": ["/dev/video0", "nvidia.com/gpu=all"]},
        "ai-enrichment": {"gpus": "all", "runtime": "nvidia", "environment": {"VRAM_BUDGET_GB": 6.8}},
    }
    text, reset = rendered(tmp_path, definitions, pin("ai-llm", 0), pin("ai-enrichment", 1, 4.0))

    (tmp_path / "reset.yml").write_text(reset)
    (tmp_path / "override.yml").write_text(text)
    merged = read_project(
        [tmp_path / name for name in ("docker-compose.prod.yml", "reset.yml", "override.yml")]
    ).services
    llm, enrichment = merged["ai-llm"].definition, merged["ai-enrichment"].definition
    assert [request.ids for request in merged["ai-llm"].gpus] == [("0",)]
    assert [request.ids for request in merged["ai-enrichment"].gpus] == [("1",)]
    assert llm["devices"] == ["/dev/video0"]
    assert llm["deploy"]["resources"]["reservations"]["devices"][1]["device_ids"] == ["v.com/tpu="]
    assert "gpus" not in enrichment
    assert "runtime" not in enrichment
    assert merged["ai-enrichment"].environment == {"VRAM_BUDGET_GB": "4"}


def test_a_request_that_comes_by_extends_is_not_dropped_where_it_is_not(tmp_path):
    definitions = {"ai-llm": {"extends": "base"}, "base": RESERVED}
    assert rendered(tmp_path, definitions, pin("ai-llm", 0))[1] is None


def test_odd_names_stay_what_they_are(tmp_path):
    text, _ = rendered(tmp_path, {"on": {}, "1": {}}, pin("on", 0), pin("1", 1))
    assert set(yaml.safe_load(text)["services"]) == {"on", "1"}


def test_a_container_tells_its_assignment_by_its_label():
    assignment = Assignment("a", 1, DeviceId("GPU-x"), 3.5)
    labels = {ASSIGNMENT_LABEL: assignment_label(assignment)}

    assert labelled_assignment("a", labels) == assignment
    assert labelled_assignment("a", {}) is None
    for forged in ("", "{}", "[]", '{"gpu":true}', '{"gpu":"0"}', "null", "}{"):
        assert labelled_assignment("a", {ASSIGNMENT_LABEL: forged}) is None


def test_the_assignments_file_has_the_documents_form(tmp_path):
    configuration = SavedConfiguration(
        3, AT, Strategy.VRAM_BASED, (pin("ai-llm", 0), pin("ai-enrichment", 1, 3.5), pin("free", None))
    )
    text = all_rendered(tmp_path, {}, configuration)[ASSIGNMENTS_NAME]

    assert text.endswith(
        "\n"
        "generated_at: '2025-01-23T10:30:00Z'\n"
        "strategy: vram_based\n"
        "assignments:\n"
        "  ai-llm: { gpu: 0, vram_budget: null }\n"
        "  ai-enrichment: { gpu: 1, vram_budget: 3.5 }\n"
        "  free: { gpu: null, vram_budget: null }\n"
    )
    assert yaml.safe_load(text)["assignments"]["ai-enrichment"] == {"gpu": 1, "vram_budget": 3.5}


def test_an_assignments_file_without_assignments_says_so(tmp_path):
    text = all_rendered(tmp_path, {}, saved(1))[ASSIGNMENTS_NAME]
    assert yaml.safe_load(text)["assignments"] == {}
