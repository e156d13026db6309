"""The pages by path, and the fragments that pages load."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from cotenant.console import analyse, doctor, events, gpu_configuration, model, overview
from cotenant.console.live_updates import View
from cotenant.console.page_request import PageRequest

Show = Callable[[PageRequest], Awaitable[View]]
_NAME: Final = "{name}"


@dataclass(frozen=True, slots=True)
class Page:
    """A page: `path` may end in `{name}`, which matches the rest, including slashes.

    `label` is its entry in the navigation, None for none. `show` is called for the page and, for every open
    tab, once a second for its live parts.
    """

    path: str
    label: str | None
    show: Show


PAGES: Final[tuple[Page, ...]] = (
    Page("/", "Overview", overview.show),
    Page("/models/{name}", None, model.show),
    Page("/analyse", "Analyse", analyse.show),
    Page("/gpu-configuration", "GPU configuration", gpu_configuration.show),
    Page("/events", "Events", events.show),
    Page("/doctor", "Doctor", doctor.show),
)

FRAGMENTS: Final[dict[tuple[str, str], Show]] = {
    ("GET", "/ui/fragments/doctor"): doctor.findings,
    ("POST", analyse.PIECE): analyse.plan,
    ("POST", gpu_configuration.PIECE): gpu_configuration.change,
    **{
        ("POST", f"{gpu_configuration.PIECE}/{order}"): gpu_configuration.order
        for order in gpu_configuration.ORDERS
    },
}
"""Parts that pages load separately, by method and path; the parts of their View are not updated."""


def find_page(raw_path: str) -> tuple[Page, str] | None:
    """Return the page at an undecoded path, and the name in the path; None if there is none."""
    for page in PAGES:
        if page.path.endswith(_NAME):
            prefix = page.path.removesuffix(_NAME)
            if raw_path.startswith(prefix) and len(raw_path) > len(prefix):
                return page, unquote(raw_path.removeprefix(prefix))
        elif raw_path == page.path:
            return page, ""
    return None
