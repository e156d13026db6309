"""`/upstream/MODEL/…`: whatever path of a model's engine, with any method, as it is."""

from typing import Final
from urllib.parse import quote, unquote

from cotenant.asgi import Header, Scope
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.errors import ForeignPage, NotOffered
from cotenant.domain.models import ModelKind
from cotenant.gateway.http.model_list import find_model
from cotenant.gateway.inference.dialects import Target
from cotenant.gateway.inference.engine_connections import EngineConnection
from cotenant.interfaces import Router

UPSTREAM: Final = "/upstream/"
_CHARACTERS: Final = "%/:?#[]@!$&'()*+,;=~"
_OWN: Final = frozenset({EngineKind.LLAMA_CPP, EngineKind.VLLM, EngineKind.COMMAND})
_OF_VLLM: Final = frozenset(
    {"v1", "health", "ping", "load", "version", "metrics", "tokenize", "detokenize", "pooling", "classify"}
    | {"score", "rerank", "invocations"}
)
"""The first parts of vLLM's paths that clients may use: others put it to sleep, or run code in it."""
_APART: Final[Header] = (b"content-security-policy", b"sandbox allow-scripts allow-forms")
"""An engine's pages have no part in the console's origin, with which they could do what its user may."""


def upstream_target(scope: Scope, router: Router) -> Target:
    """Return the target that a path below `/upstream/MODEL` is.

    Raises UnknownModel, NotOffered for an engine that others run, or ForeignPage for what a page of another
    site requests, which needs no leave for a GET.
    """
    if dict(scope["headers"]).get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        raise ForeignPage("a page of another site asks for a model's engine", hint="Open the address itself.")
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    segment, _, rest = raw.removeprefix(UPSTREAM.encode()).partition(b"/")
    model = find_model(unquote(segment.decode("latin-1")), router)
    kind = model.recipe.engine if model.recipe is not None else EngineKind.COMMAND
    if kind not in _OWN:
        raise NotOffered(
            f"the server of {model.name} is not Cotenant's, and gets requests of /v1 only",
            hint="Its other paths would act for the operator, with the operator's key.",
        )
    if kind is EngineKind.VLLM and unquote(rest.decode("latin-1")).partition("/")[0] not in _OF_VLLM:
        raise NotOffered(f"this path of vLLM is not passed; passed are {', '.join(sorted(_OF_VLLM))}")
    query = scope.get("query_string", b"")
    path = quote(b"/" + rest, _CHARACTERS) + (f"?{quote(query, _CHARACTERS)}" if query else "")
    return Target(
        path.encode(),
        frozenset(ModelKind),
        everywhere=True,
        has_files=True,
        method=scope["method"],
        passed_to=model.name,
    )


def headers_for_client(target: Target, reply: EngineConnection) -> list[Header]:
    """Return the headers of an engine's response for its client."""
    if target.passed_to is None:
        return reply.headers
    headers = [*reply.headers, _APART]
    if reply.location.startswith(b"/") and not reply.location.startswith(b"//"):
        headers.append((b"location", f"{UPSTREAM}{quote(target.passed_to, '')}".encode() + reply.location))
    return headers
