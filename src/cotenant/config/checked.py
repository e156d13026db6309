"""Settings that are right one by one, before they are resolved to a Configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cotenant.config.issues import ConfigIssue, KeyPath
from cotenant.config.schema import Settings
from cotenant.config.yaml_document import Document


@dataclass(frozen=True, slots=True)
class CheckedSettings:
    """Settings of all sources, each of them valid, and the source that gave each."""

    settings: Settings
    document: Document | None
    sources: Mapping[KeyPath, str]

    @property
    def base(self) -> Path:
        """The folder that the file's relative paths start from."""
        return Path.cwd() if self.document is None else Path(self.document.name).absolute().parent

    def issue(self, key: KeyPath, what: str, hint: str) -> ConfigIssue:
        """Return an issue of a setting, with the place where it was given."""
        for length in range(len(key), 0, -1):
            source = self.sources.get(key[:length])
            if source is not None:
                return ConfigIssue(source, what, hint)
        if self.document is None:
            return ConfigIssue("the configuration", what, hint, key=key)
        return ConfigIssue(self.document.name, what, hint, key=key, line=self.document.line_of(key))
