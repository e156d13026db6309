from pathlib import Path

import pytest

from cotenant.engines.llama_cpp.host_facts import cpu_quota, physical_cores, read_host_facts


def topology(root: Path, siblings: dict[int, str]) -> Path:
    for cpu, text in siblings.items():
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    return root


def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    root = topology(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert physical_cores(range(4), root) == 2
    assert physical_cores({0, 2}, root) == 1


def test_unknown_topology_counts_every_cpu(tmp_path: Path) -> None:
    assert physical_cores({4, 5, 6}, tmp_path) == 3


@pytest.mark.parametrize(
    ("own", "parent", "quota"),
    [
        ("max 100000", "max 100000", None),
        ("250000 100000", "max 100000", 2.5),
        ("max 100000", "50000 100000", 0.5),
    ],
)
def test_the_tightest_control_group_counts(
    tmp_path: Path, own: str, parent: str, quota: float | None
) -> None:
    group = tmp_path / "groups" / "a" / "b"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text(own + "\n")
    (group.parent / "cpu.max").write_text(parent + "\n")
    (tmp_path / "own").write_text("1:cpu:/x\n0::/a/b\n")
    assert cpu_quota(tmp_path / "own", tmp_path / "groups") == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "missing", tmp_path) is None


def test_this_machine_has_a_core() -> None:
    assert read_host_facts().cores >= 1
