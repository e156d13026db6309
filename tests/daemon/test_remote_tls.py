"""Models of servers behind TLS, under a path, with an authority of one's own."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.harness import connected
from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.http.client import Reply, post
from tests.support.http.tls_server import Authority, far_server, self_signed

pytestmark = pytest.mark.slow

ASK = {"prompt": "Once", "max_tokens": 4}


def served(folder: Path, addresses: dict[str, str], env: dict[str, str]) -> Serving:
    models = [
        {
            "name": name,
            "engine": "remote",
            "model": "far-model",
            "address": address,
            "api_key_env": "FAR_KEY",
        }
        for name, address in addresses.items()
    ]
    (folder / "cotenant.yaml").write_text(json.dumps({"models": models}))
    argv = ["serve", "--config", str(folder / "cotenant.yaml"), "--port", "0", "--gpus", "1GiB"]
    return Serving(argv, folder / "state", {"FAR_KEY": "s3cret", **env})


def complete(daemon: Serving, name: str) -> Reply:
    return asyncio.run(post(port_of(daemon), "/v1/completions", {"model": name, **ASK}, within_s=20))


def error_of(reply: Reply) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reply.body)["error"]
    return found


def test_a_server_with_a_path_and_an_authority_of_ones_own_is_spoken_to_with_its_key(tmp_path: Path) -> None:
    authority = Authority.made(tmp_path)
    with far_server(authority.signed("far"), "/some/where") as far:
        address = f"https://127.0.0.1:{far.port}/some/where"
        trusting = {"SSL_CERT_FILE": str(authority.certificate)}
        with served(tmp_path, {"far": address, "with-v1": f"{address}/v1/"}, trusting) as daemon:
            reply = complete(daemon, "far")
            assert (reply.status, json.loads(reply.body)["choices"]) == (200, [{"text": "far"}]), reply.body
            assert complete(daemon, "with-v1").status == 200
            bearer = "Bearer s3cret"
            assert (
                far.asked
                == [
                    ("/some/where/v1/models", "", bearer),
                    ("/some/where/v1/completions", "far-model", bearer),
                ]
                * 2
            )

            async def first_then_rest() -> tuple[bytes, bytes]:
                async with connected(port_of(daemon)) as client:
                    client.post({"model": "far", "stream": True, **ASK}, "/v1/completions")
                    await client.head()
                    first = await client.chunk()
                    far.go_on.set()
                    return first, await client.reply_body()

            first, rest = asyncio.run(first_then_rest())
            assert b'"one "' in first
            assert b'"two"' not in first
            assert rest.endswith(b"data: [DONE]\n\n")
            assert "s3cret" not in daemon.output + get(daemon, "/api/models", as_text=True)


def test_a_certificate_that_is_wrong_is_one_clear_line_at_once(tmp_path: Path) -> None:
    authority = Authority.made(tmp_path)
    with (
        far_server(authority.signed("far"), "") as far,
        far_server(self_signed(tmp_path), "") as alone,
        far_server(None, "") as plain,
    ):
        addresses = {
            "elsewhere": f"https://localhost:{far.port}",
            "alone": f"https://127.0.0.1:{alone.port}",
            "plain": f"https://127.0.0.1:{plain.port}",
        }
        with served(tmp_path, addresses, {"SSL_CERT_FILE": str(authority.certificate)}) as daemon:
            for name, wrong in (
                ("elsewhere", "its certificate is not trusted: Hostname mismatch"),
                ("alone", "its certificate is not trusted: self-signed certificate"),
                ("plain", "it does not speak TLS correctly"),
            ):
                refused = complete(daemon, name)
                assert refused.status == 503, refused.body
                assert error_of(refused)["cause"] == "untrusted_server"
                message = error_of(refused)["message"]
                assert f"{name} at {addresses[name]} cannot be reached: {wrong}" in message
                assert "SSL_CERT_FILE" in message
            assert daemon.terminate() == 0
            assert "Traceback" not in daemon.output
        assert alone.asked == [], "the key goes to nobody who is not trusted"
