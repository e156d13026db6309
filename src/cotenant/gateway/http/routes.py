"""Routes of the daemon's own API, each declared once, for dispatch and for the OpenAPI document."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from pydantic import BaseModel

from cotenant.asgi import Scope, Send, send_json
from cotenant.domain import errors
from cotenant.domain.errors import CotenantError, MethodNotAllowed
from cotenant.domain.keys import KeyScope
from cotenant.gateway.http.problems import send_problem
from cotenant.gateway.http.request import ApiRequest

_log = logging.getLogger("cotenant.gateway.orders")

_NAME: Final = "{name}"

BODY_ERRORS: Final = (errors.BadRequest, errors.BadAssignment, errors.UnsupportedMediaType)
"""Errors that reading a JSON body may raise."""

Handler = Callable[[ApiRequest], Awaitable[object]]
"""Handles a request: returns the payload to send as JSON, or sends the response itself and returns None."""

F = TypeVar("F", bound=Callable[..., Awaitable[object]])


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful response. `type` is the type of its body, None for plain text; `example` makes one."""

    type: Any
    description: str
    status: int = 200
    content_type: str = "application/json"
    example: Callable[[], BaseModel] | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the query or the path."""

    name: str
    description: str
    schema: Mapping[str, Any]
    place: str = "query"
    required: bool = False
    example: Any = None

    def as_json(self) -> dict[str, Any]:
        """Describe the parameter in OpenAPI's form."""
        described = {
            "name": self.name,
            "in": self.place,
            "required": self.required,
            "description": self.description,
            "schema": dict(self.schema),
        }
        return described if self.example is None else {**described, "example": self.example}


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request."""

    type: Any
    required: bool = False
    examples: Mapping[str, Any] = field(default_factory=dict)
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path template, with the types of their requests and responses; decorates their handler.

    `at` is both, as `GET /path`. `reply` is the usual response and `other_replies` are alternatives. `errors`
    are those that only this route raises; `HTTP_PROBLEMS` has their statuses. What is no GET is an order,
    which is logged with who gave it, unless `changes` is false. A key needs `scope`.
    """

    at: str
    summary: str
    reply: Reply
    errors: tuple[type[CotenantError], ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    other_replies: tuple[Reply, ...] = ()
    changes: bool = True
    scope: KeyScope = KeyScope.OPERATE

    @property
    def method(self) -> str:
        """The method, in upper case."""
        return self.at.partition(" ")[0]

    @property
    def path(self) -> str:
        """The path, in which `{name}` may stand for a name."""
        return self.at.partition(" ")[2]

    def __call__(self, handler: F) -> F:
        """Declare that a method handles this route."""
        vars(handler)["route"] = self
        return handler


class RouteTable:
    """Finds the handlers of a path among the methods of `owners`.

    Slashes in a name are written %2F, or as they are where that is not ambiguous.
    """

    def __init__(self, *owners: object) -> None:
        declared = [
            (member.route, getattr(owner, name))
            for owner in owners
            for name, member in vars(type(owner)).items()
            if hasattr(member, "route")
        ]
        self.routes: tuple[Route, ...] = tuple(route for route, _ in declared)
        self._by_path: dict[str, dict[str, Handler]] = {}
        for route, handler in declared:
            self._by_path.setdefault(route.path, {})[route.method] = handler
        # `/models/{name}/why` comes before `/models/{name}`, which matches the same paths.
        templates = sorted((path for path in self._by_path if _NAME in path), key=len, reverse=True)
        self._templates = [(path, *path.split(_NAME)) for path in templates]

    def find(self, scope: Scope) -> tuple[Mapping[str, Handler] | None, str]:
        """Return the handlers of a path by method, None if it has none, and the name in the path."""
        found = self._by_path.get(scope["path"])
        if found is not None:
            return found, ""
        raw: str = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        for path, before, after in self._templates:
            name = raw[len(before) : len(raw) - len(after)]
            if name and raw.startswith(before) and raw.endswith(after):
                return self._by_path[path], unquote(name)
        return None, ""


async def dispatch(request: ApiRequest, handlers: Mapping[str, Handler]) -> None:
    """Call the handler for the request's method, or send an error with the allowed methods."""
    handler = handlers.get("GET" if request.method == "HEAD" else request.method)
    if handler is None:
        await refuse_method(request.method, request.path, handlers, request.send)
        return
    route: Route | None = getattr(handler, "route", None)
    if route is not None:
        request.require(route.scope)
    if route is not None and route.changes and route.method != "GET":
        log_order(request, f"{request.method} {request.path[:200]!r}")
    payload = await handler(request)
    if payload is not None:
        await send_json(request.send, route.reply.status if route else 200, payload)


def log_order(request: ApiRequest, order: str) -> None:
    """Log an order and who gave it: the address, and the name of the key."""
    _log.info("order: %s from=%s", order, request.caller)


async def refuse_method(method: str, path: str, allowed: Iterable[str], send: Send) -> None:
    """Send the error that a path does not support a method, with the allowed methods."""
    allow = ", ".join("GET, HEAD" if each == "GET" else each for each in allowed)
    error = MethodNotAllowed(f"{path} does not support {method}", hint=f"Use {allow}.")
    await send_problem(send, error, ((b"allow", allow.encode()),))


def integer(minimum: int = 0, maximum: int = 999_999_999, **more: Any) -> Mapping[str, Any]:
    """Return the schema of a whole number in a query."""
    return {"type": "integer", "minimum": minimum, "maximum": maximum, **more}
