"""Reads the `advisor` section into AdvisorSettings."""

from collections.abc import Sequence
from pathlib import Path

from cotenant.config.checked import CheckedSettings
from cotenant.config.configuration import AdvisorSettings, ModelEntry, Problem
from cotenant.config.fields import values_of
from cotenant.domain.advisors import AdvisorMode
from cotenant.http.client import api_endpoint


def advisor_settings(checked: CheckedSettings) -> AdvisorSettings:
    """Return the section with all defaults filled in, and report conflicts between its keys."""
    settings = AdvisorSettings(**values_of(checked.settings.advisor, AdvisorSettings))
    if settings.mode is AdvisorMode.OFF:
        return settings
    if settings.api_key is not None and settings.address is None:
        hint = "Give `address:`, or leave the key out: a model served here needs none."
        checked.report(("advisor", "api_key"), "there is no address for this key", hint)
    elif settings.model is None:
        checked.report(("advisor", "mode"), "there is no model to ask", "Give `model:`.")
    elif settings.address is not None:
        try:
            api_endpoint(settings.address)
        except ValueError:
            hint = "Write http://host:port or https://host/path, with nothing after the path."
            checked.report(("advisor", "address"), "it is not the address of an API", hint)
    return settings


def advisor_problems(settings: AdvisorSettings, models: Sequence[ModelEntry]) -> list[Problem]:
    """Return a problem if the advisor's model is not served; no error, as its file may be added later."""
    names = {name for entry in models for name in (entry.name, *entry.aliases)}
    if settings.mode is AdvisorMode.OFF or settings.address is not None or settings.model in names:
        return []
    return [Problem(Path("advisor"), f"{settings.model} is not served here, so there is no advice")]
