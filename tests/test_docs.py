"""The documentation: what it links to is there, and it names the folders that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SOURCE = ROOT / "src" / "cotenant"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_of_the_project(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_design_lists_every_folder_and_no_other() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    block = re.search(r"^## 2\..*?^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    listed, room = set(), ""
    for line in block[1].splitlines():
        names = re.findall(r"(?<!\S)([a-z_]+)/(?!\S)", line if line.startswith("  ") else line.split()[0])
        if line.startswith("  "):
            listed |= {f"{room}/{name}" for name in names}
        elif names:
            room = names[0]
            listed.add(room)
    there = {str(path.parent.relative_to(SOURCE)) for path in SOURCE.rglob("__init__.py")} - {"."}
    assert listed == {name for name in there if not name.startswith("store/migrations/")}
