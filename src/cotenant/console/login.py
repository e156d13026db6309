"""Signing in with an API key, and out again."""

from __future__ import annotations

from cotenant.console.api import ApiFault, Reply
from cotenant.console.page_request import Visit
from cotenant.console.rendering import render
from cotenant.console.responses import Header, Scope, Send, accepts_gzip, send_html, send_redirect


async def answer_login(visit: Visit, scope: Scope, send: Send) -> None:
    """Show the form, or take the key and go on to the page that was asked for. Raises ApiFault."""
    wanted = own_page(visit.query.get("next", "/"))
    fault: ApiFault | None = None
    if visit.method == "POST":
        await visit.read_form()
        wanted = own_page(visit.form.get("next", "/"))
        reply = await visit.api.ask("POST", "/api/session", {"key": visit.form.get("key", "")})
        try:
            reply.json()
        except ApiFault as refused:
            fault = refused
        else:
            await send_redirect(send, wanted, _cookies(reply))
            return
    else:
        session = await visit.api.find("/api/session", {})
        if session.get("signed_in") or not session.get("needed", True):
            await send_redirect(send, wanted)
            return
    html = render("login.html", {"fault": fault, "next": wanted})
    status = fault.status if fault else 200
    await send_html(send, status, html, packed=accepts_gzip(scope["headers"]))


async def answer_logout(visit: Visit, send: Send) -> None:
    """End the session, if the form bears its token. Raises ApiFault."""
    if visit.method != "POST":
        raise ApiFault(405, "method_not_allowed", "Sign out with the button.")
    await visit.read_form()
    token = visit.form.get("csrf", "").encode("latin-1", "replace")
    reply = await visit.api.ask("POST", "/api/session/end", headers=[(b"x-cotenant-csrf", token)])
    reply.json()
    await send_redirect(send, "/login", _cookies(reply))


def own_page(text: str) -> str:
    """Return where to go next: a path of this daemon, or the overview for what is anything else."""
    sound = text.startswith("/") and not text.startswith(("//", "/\\", "/login", "/logout"))
    return text if sound and text.isprintable() and text.isascii() else "/"


def _cookies(reply: Reply) -> list[Header]:
    return [(name, value) for name, value in reply.headers if name == b"set-cookie"]
