"""The JSON schema of `cotenant.yaml`, by which editors complete and check it: docs/cotenant.schema.json."""

from __future__ import annotations

import json
import sys
from typing import Any

from cotenant.config.schema import Settings


def json_schema() -> str:
    """Render the schema."""
    schema: dict[str, Any] = Settings.model_json_schema()
    # A switch of its own rather than a mapping: `warm: off`.
    warm = schema["properties"]["warm"]
    schema["properties"]["warm"] = {"anyOf": [warm, {"enum": ["off", False]}]}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json_schema())
