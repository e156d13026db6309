from __future__ import annotations

import json
from pathlib import Path

from cotenant.config.json_schema import json_schema


def test_the_schema_of_the_documentation_is_up_to_date() -> None:
    told = "regenerate it: python -m cotenant.config.json_schema > docs/cotenant.schema.json"
    assert (Path(__file__).parents[2] / "docs" / "cotenant.schema.json").read_text() == json_schema(), told


def test_the_schema_refuses_unknown_keys_and_describes_numbers() -> None:
    schema = json.loads(json_schema())
    assert schema["additionalProperties"] is False
    port = schema["$defs"]["Server"]["properties"]["port"]
    assert {"type": "integer", "minimum": 0, "maximum": 65535} in port["anyOf"]
