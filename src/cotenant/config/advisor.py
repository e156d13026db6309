"""From the `advisor` section to AdvisorSettings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cotenant.config.checked import CheckedSettings
from cotenant.config.configuration import AdvisorSettings, ModelEntry, Problem
from cotenant.config.fields import values_of
from cotenant.config.issues import ConfigIssue
from cotenant.config.schema import Advisor
from cotenant.domain.advisors import AdvisorMode
from cotenant.http.client import api_endpoint


def advisor_settings(section: Advisor, checked: CheckedSettings) -> tuple[AdvisorSettings, list[ConfigIssue]]:
    """Return the section with all defaults filled in, and what is wrong between its parts."""
    settings = AdvisorSettings(**values_of(section, AdvisorSettings))
    if settings.mode is AdvisorMode.OFF:
        return settings, []
    if settings.api_key is not None and settings.address is None:
        hint = "Give `address:`, or leave the key out: a model served here needs none."
        return settings, [checked.issue(("advisor", "api_key"), "it is the key of no address", hint)]
    if settings.model is None:
        return settings, [checked.issue(("advisor", "mode"), "there is no model to ask", "Give `model:`.")]
    if settings.address is not None:
        return settings, _about_address(settings.address, checked)
    return settings, []


def advisor_problems(settings: AdvisorSettings, models: Sequence[ModelEntry]) -> list[Problem]:
    """Tell of a model that is to give advice and is not served: it may come later, with its file."""
    names = {name for entry in models for name in (entry.name, *entry.aliases)}
    if settings.mode is AdvisorMode.OFF or settings.address is not None or settings.model in names:
        return []
    return [Problem(Path("advisor"), f"{settings.model} is not served here, so that nobody gives advice")]


def _about_address(address: str, checked: CheckedSettings) -> list[ConfigIssue]:
    try:
        api_endpoint(address)
    except ValueError:
        hint = "Write http://host:port or https://host/path, with nothing after the path."
        return [checked.issue(("advisor", "address"), "it is no address of an API", hint)]
    return []
