import json
from pathlib import Path

import pytest

from cotenant.config.documentation import PAGE, SCHEMA, json_schema, with_tables
from cotenant.config.environment import SETTINGS
from cotenant.config.fields import SECTIONS

DOCS = Path(__file__).parents[2] / "docs"
WRITE = "write it anew: python -m cotenant.config.documentation docs"


def test_the_schema_of_the_documentation_is_up_to_date() -> None:
    assert (DOCS / SCHEMA).read_text() == json_schema(), WRITE


def test_the_tables_of_the_page_are_up_to_date() -> None:
    page = (DOCS / PAGE).read_text()
    assert page == with_tables(page), WRITE
    for section, settings in SECTIONS.items():
        assert f"<!-- settings: {section} -->" in page
        assert all(f"| `{each.key}` |" in page for each in settings), section


def test_each_declared_setting_with_a_flag_has_a_variable() -> None:
    declared = {each.flag for settings in SECTIONS.values() for each in settings if each.flag}
    assert declared <= SETTINGS.keys()


def test_a_table_of_no_section_is_refused() -> None:
    with pytest.raises(LookupError):
        with_tables("<!-- settings: nowhere -->\n<!-- end -->")


def test_the_schema_refuses_unknown_keys_and_describes_numbers() -> None:
    schema = json.loads(json_schema())
    assert schema["additionalProperties"] is False
    port = schema["$defs"]["Server"]["properties"]["port"]
    assert {"type": "integer", "minimum": 0, "maximum": 65535} in port["anyOf"]
