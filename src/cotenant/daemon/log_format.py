"""How the daemon's log is written: lines of text, or one JSON object a line for collectors of logs."""

import json
import logging
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from cotenant.domain.decisions import Decision


class LogFormat(StrEnum):
    """The form of the log."""

    TEXT = "text"
    JSON = "json"


def log_to_stderr(log_format: LogFormat) -> None:
    """Send records of level INFO and above to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if log_format is LogFormat.JSON:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())


class JsonLines(logging.Formatter):
    """Writes a record as one line: `time` (ISO 8601, UTC), `level`, `logger`, `message`.

    `error` is the traceback of an exception, `hint` what to do about a fault that ends the daemon, and
    `decision` the parts of one that the message tells: number, kind, model, cause and facts.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        decision = getattr(record, "decision", None)
        if isinstance(decision, Decision):
            fields["decision"] = {
                "number": decision.number,
                "kind": decision.kind,
                "model": decision.model,
                "cause": decision.cause,
                "facts": dict(decision.facts),
            }
        if hint := getattr(record, "hint", None):
            fields["hint"] = hint
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        # What is of no JSON type is told as text: a line that cannot be written would be lost.
        return json.dumps(fields, ensure_ascii=False, default=str)
