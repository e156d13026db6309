"""Settings that are valid one by one, before they are combined."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cotenant.config.issues import ConfigIssue, KeyPath
from cotenant.config.schema import Settings
from cotenant.config.yaml_document import Document


@dataclass(frozen=True, slots=True)
class CheckedSettings:
    """Settings that are valid one by one, and the source of each."""

    settings: Settings
    document: Document | None
    sources: Mapping[KeyPath, str]

    @property
    def base(self) -> Path:
        """The folder that relative paths in the file are resolved against."""
        return (
            Path(self.document.name).absolute().parent if self.document and self.document.name else Path.cwd()
        )

    def issue(self, key: KeyPath, what: str, hint: str) -> ConfigIssue:
        """Return an issue with a setting, and where the setting was given."""
        for length in range(len(key), 0, -1):
            source = self.sources.get(key[:length])
            if source is not None:
                return ConfigIssue(source, what, hint)
        if self.document is None or not self.document.name:
            return ConfigIssue("the configuration", what, hint, key=key)
        return ConfigIssue(self.document.name, what, hint, key=key, line=self.document.line_of(key))
