"""A page of another origin asks a model, which it may if `server.cors_origins` has its origin."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.browser.site import Site
from tests.support.browser import tab

pytestmark = pytest.mark.slow

_CHAT = """([address, key]) => fetch(address + "/v1/chat/completions", {
    method: "POST",
    headers: {"Content-Type": "application/json", "Authorization": "Bearer " + key},
    body: JSON.stringify({model: "tiny-llama", max_tokens: 4, messages: [{role: "user", content: "Hi"}]}),
}).then((response) => response.json())
  .then((answer) => answer.object ?? answer.error.code, (error) => error.name)"""
_UNLOAD = """(address) => fetch(address, {method: "POST", credentials: "include"})
  .then((response) => response.status, (error) => error.name)"""
KEY = "a-key-for-the-tests-only"


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Another</title><link rel=icon href=data:,>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere():
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("allowed", [True, False], ids=["on", "off"])
def test_a_page_of_another_origin_chats_if_it_is_allowed(browser, elsewhere, tmp_path, allowed):
    origins = {"cors_origins": [elsewhere]} if allowed else {}
    site = Site(tmp_path, models={"tiny-llama": {}}, services=(), server={"api_keys": [KEY], **origins})
    with site.daemon() as daemon, tab(browser, elsewhere) as look:
        page = look.open("/")
        outcome = "chat.completion" if allowed else "TypeError"
        assert page.evaluate(_CHAT, [daemon.address(), KEY]) == outcome
        assert page.evaluate(_CHAT, [daemon.address(), "wrong"]) == ("unauthorized" if allowed else outcome)
        assert page.evaluate(_UNLOAD, f"{daemon.address()}/api/models/tiny-llama/unload") == "TypeError"
        look.complaints.clear()  # Chromium writes each refusal into its console.
