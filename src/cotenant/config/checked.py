"""Settings that are valid one by one, before they are combined, and what is wrong with them together."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cotenant.config.issues import ConfigIssue, KeyPath, refusal
from cotenant.config.schema import Settings
from cotenant.config.yaml_document import Document


@dataclass(frozen=True, slots=True)
class CheckedSettings:
    """Settings that are valid one by one, the source of each, and the issues that were found with them."""

    settings: Settings
    document: Document | None
    sources: Mapping[KeyPath, str]
    issues: list[ConfigIssue] = field(default_factory=list)

    @property
    def path(self) -> Path | None:
        """The file that was read."""
        return Path(self.document.name) if self.document and self.document.name else None

    def absolute(self, text: str) -> Path:
        """Return an absolute path; relative ones start from the file's folder."""
        return Path(os.path.abspath((self.path.absolute().parent if self.path else Path.cwd()) / text))

    def report(self, key: KeyPath, what: str, hint: str) -> None:
        """Note an issue with a setting, and where the setting was given."""
        for length in range(len(key), 0, -1):
            if source := self.sources.get(key[:length]):
                self.issues.append(ConfigIssue(source, what, hint))
                return
        name = str(self.path or "the configuration")
        line = self.document.line_of(key) if self.document and self.path else None
        self.issues.append(ConfigIssue(name, what, hint, key, line))

    def refuse(self) -> None:
        """Raise BadSetting with all issues, if there are any."""
        if self.issues:
            raise refusal(sorted(self.issues, key=lambda issue: issue.line or 0))
