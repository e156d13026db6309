"""Signing in with an API key, and signing out."""

from cotenant.asgi import Header, Scope, Send
from cotenant.console.api import ApiFault, Refused, Reply
from cotenant.console.page_request import PageRequest
from cotenant.console.rendering import render
from cotenant.console.responses import send_html, send_redirect


async def answer_login(request: PageRequest, scope: Scope, send: Send) -> None:
    """Show the form, or check the key and redirect to the requested page. Raises ApiFault."""
    wanted = own_page(request.query.get("next", "/"))
    fault: Refused | None = None
    if request.method == "POST":
        await request.read_form()
        wanted = own_page(request.form.get("next", "/"))
        reply = await request.api.send("POST", "/api/session", {"key": request.form.get("key", "")})
        try:
            reply.json()
        except Refused as refused:
            fault = refused
        else:
            await send_redirect(send, wanted, _cookies(reply))
            return
    else:
        session = await request.api.find("/api/session", {})
        if session.get("signed_in") or not session.get("needed", True):
            await send_redirect(send, wanted)
            return
    html = render("login.html", {"fault": fault, "next": wanted})
    await send_html(scope, send, html, fault.status if fault else 200)


async def answer_logout(request: PageRequest, send: Send) -> None:
    """End the session if the form has its token. Raises ApiFault."""
    if request.method != "POST":
        raise ApiFault(405, "method_not_allowed", "Sign out with the button.")
    await request.read_form()
    token = request.form.get("csrf", "").encode("latin-1", "replace")
    reply = await request.api.send("POST", "/api/session/end", headers=[(b"x-cotenant-csrf", token)])
    reply.json()
    await send_redirect(send, "/login", _cookies(reply))


def own_page(text: str) -> str:
    """Return the path to redirect to if it is on this daemon, else that of the overview."""
    sound = text.startswith("/") and not text.startswith(("//", "/\\", "/login", "/logout"))
    return text if sound and text.isprintable() and text.isascii() else "/"


def _cookies(reply: Reply) -> list[Header]:
    return [(name, value) for name, value in reply.headers if name == b"set-cookie"]
