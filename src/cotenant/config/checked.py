"""Settings as checked one by one, before they are put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cotenant.config.issues import ConfigIssue, KeyPath
from cotenant.config.schema import Settings
from cotenant.config.yaml_document import Document


@dataclass(frozen=True, slots=True)
class CheckedSettings:
    """Settings as checked one by one, and where each came from."""

    settings: Settings
    document: Document | None
    sources: Mapping[KeyPath, str]

    @property
    def base(self) -> Path:
        """The folder that the file's relative paths start from."""
        return (
            Path(self.document.name).absolute().parent if self.document and self.document.name else Path.cwd()
        )

    def issue(self, key: KeyPath, what: str, hint: str) -> ConfigIssue:
        """Return an issue of a setting, with the place where it was given."""
        for length in range(len(key), 0, -1):
            source = self.sources.get(key[:length])
            if source is not None:
                return ConfigIssue(source, what, hint)
        if self.document is None or not self.document.name:
            return ConfigIssue("the configuration", what, hint, key=key)
        return ConfigIssue(self.document.name, what, hint, key=key, line=self.document.line_of(key))
