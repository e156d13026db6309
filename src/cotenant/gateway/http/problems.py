"""Errors as HTTP responses: a status, and an error object in OpenAI's form."""

import html
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from cotenant.asgi import JSON_TYPE, Header, Send, encode_json, send_body
from cotenant.domain import errors, nodes
from cotenant.domain.errors import CotenantError
from cotenant.gateway.http.redaction import for_clients

_INVALID: Final = "invalid_request_error"
_REASONS: Final = ("error", "message", "msg", "detail", "details", "errors", "title", "error_msg")
"""Fields in which servers say what is wrong."""
_NAMED: Final = 3
_MAX_REASON: Final = 400
_TAGS: Final = re.compile(
    r"<(script|style|head)\b.{0,20000}?</\1>|<[^<>]{0,2000}>", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class HttpProblem:
    """How a class of errors is sent to a client.

    `param` names the wrong field. `retry_after_s` is sent if waiting helps and the error itself does not say
    how long. With `hopeless`, the openai client does not retry: the request would be refused again.
    """

    status: int
    type: str = "server_error"
    param: str | None = None
    retry_after_s: int | None = None
    hopeless: bool = False

    def headers(self, retry_after_s: float | None = None) -> list[Header]:
        """Return the headers of the response; the error's own `retry_after_s` takes precedence."""
        headers = [JSON_TYPE]
        wait_s = self.retry_after_s if retry_after_s is None else retry_after_s
        if wait_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(wait_s))))
        elif self.hopeless:
            headers.append((b"x-should-retry", b"false"))
        if self.status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="cotenant"'))
        return headers


_INVALID_REQUEST: Final = HttpProblem(400, _INVALID)
_OPERATOR_ERROR: Final = HttpProblem(500, hopeless=True)

HTTP_PROBLEMS: Final[dict[type[CotenantError], HttpProblem]] = {
    errors.BadQuantity: _INVALID_REQUEST,
    errors.BadDeviceSpec: _INVALID_REQUEST,
    errors.UnknownDevice: _INVALID_REQUEST,
    errors.UnknownNode: HttpProblem(404, _INVALID),
    errors.BadRecipe: _INVALID_REQUEST,
    errors.BadSplit: _INVALID_REQUEST,
    errors.BadHubName: HttpProblem(400, _INVALID, param="model"),
    errors.BadTrace: _INVALID_REQUEST,
    errors.BadSetting: _OPERATOR_ERROR,
    errors.InsecureBind: _OPERATOR_ERROR,
    errors.PortTaken: _OPERATOR_ERROR,
    errors.ModelFileMissing: _OPERATOR_ERROR,
    errors.NotAModelFile: _OPERATOR_ERROR,
    errors.CorruptModelFile: _OPERATOR_ERROR,
    errors.SplitPartMissing: _OPERATOR_ERROR,
    errors.UnsupportedModelFile: _OPERATOR_ERROR,
    errors.DoesNotFit: HttpProblem(503, hopeless=True),
    errors.CannotMove: HttpProblem(409, _INVALID, hopeless=True),
    errors.UnknownLease: HttpProblem(404, _INVALID),
    errors.UnknownKey: HttpProblem(404, _INVALID),
    errors.StoreError: _OPERATOR_ERROR,
    errors.DaemonSilent: HttpProblem(502),
    errors.UnitFault: _OPERATOR_ERROR,
    errors.MpsMissing: HttpProblem(503, hopeless=True),
    errors.MpsFailed: HttpProblem(503, retry_after_s=10),
    errors.HubSilent: HttpProblem(502, retry_after_s=10),
    errors.NotOnHub: HttpProblem(404, _INVALID, param="model"),
    errors.NoRoomOnDisk: HttpProblem(507, hopeless=True),
    errors.PullFailed: HttpProblem(502),
    errors.ComposeFileError: _OPERATOR_ERROR,
    errors.ContainerEngineMissing: HttpProblem(503, hopeless=True),
    errors.GeneratedFileEdited: HttpProblem(409, _INVALID, hopeless=True),
    errors.GeneratedFileFailed: _OPERATOR_ERROR,
    nodes.NodeUnreachable: HttpProblem(503, retry_after_s=2),
    nodes.AgentGone: HttpProblem(503, retry_after_s=2),
    nodes.BadNodeMessage: HttpProblem(502),
    nodes.WrongProtocol: HttpProblem(503, hopeless=True),
    nodes.StaleEpoch: HttpProblem(503, hopeless=True),
    nodes.LeaseOver: HttpProblem(503, retry_after_s=2),
    errors.EngineMissing: HttpProblem(503, hopeless=True),
    errors.EngineLacksDevice: HttpProblem(503, hopeless=True),
    errors.EngineLoadFailed: HttpProblem(503, retry_after_s=10),
    errors.EngineLoadTimeout: HttpProblem(503, retry_after_s=10),
    errors.EngineDied: HttpProblem(503, retry_after_s=2),
    errors.EngineHung: HttpProblem(504, retry_after_s=2),
    errors.EngineInstallFailed: _OPERATOR_ERROR,
    errors.BadRequest: _INVALID_REQUEST,
    errors.RequestTooLarge: HttpProblem(413, _INVALID),
    errors.HeadersTooLarge: HttpProblem(431, _INVALID),
    errors.UnsupportedMediaType: HttpProblem(415, _INVALID),
    errors.Unauthorized: HttpProblem(401, "authentication_error"),
    errors.Forbidden: HttpProblem(403, "permission_error", hopeless=True),
    errors.TooManyAttempts: HttpProblem(429, "rate_limit_error", retry_after_s=60),
    errors.ForeignPage: HttpProblem(403, "permission_error", hopeless=True),
    errors.UntrustedHost: HttpProblem(403, "permission_error", hopeless=True),
    errors.HeaderIncomplete: HttpProblem(416, _INVALID, hopeless=True),
    errors.HeaderGone: HttpProblem(404, _INVALID, hopeless=True),
    errors.BadAssignment: HttpProblem(422, _INVALID),
    errors.ApplyRunning: HttpProblem(409, _INVALID, retry_after_s=5),
    errors.NothingToRollBack: HttpProblem(409, _INVALID, hopeless=True),
    errors.UnknownModel: HttpProblem(404, _INVALID, param="model"),
    errors.WrongKind: HttpProblem(400, _INVALID, param="model"),
    errors.NotOffered: HttpProblem(501, _INVALID, hopeless=True),
    errors.UnknownRoute: HttpProblem(404, _INVALID),
    errors.MethodNotAllowed: HttpProblem(405, _INVALID),
    errors.QueueFull: HttpProblem(429, "rate_limit_error", retry_after_s=1),
    errors.QuotaExceeded: HttpProblem(429, "rate_limit_error", retry_after_s=1),
    errors.WaitTimeout: HttpProblem(504, "overloaded_error", retry_after_s=1),
    errors.CrashesEngine: HttpProblem(422, _INVALID, hopeless=True),
    errors.ModelUnloaded: HttpProblem(503, retry_after_s=10),
    errors.AnswerTimeout: HttpProblem(504),
    errors.UpstreamFailed: HttpProblem(502),
    errors.TooManyConnections: HttpProblem(503, retry_after_s=5),
    errors.ShuttingDown: HttpProblem(503, retry_after_s=5),
}
"""One entry per leaf of the exception tree; a test checks this."""

_UNEXPECTED: Final = HttpProblem(500)

BROKEN_CONFIGURATION: Final = HttpProblem(422, _INVALID, hopeless=True)
"""A bad setting, in the response to a request to reload the configuration."""

UNREADABLE_MODEL: Final = HttpProblem(422, _INVALID, hopeless=True)
"""A model file that cannot be read, in the response to a request for its plan."""


def http_problem(error: BaseException) -> HttpProblem:
    """Return how an error is sent; one that is not a CotenantError becomes a 500."""
    for kind in type(error).__mro__:
        if kind in HTTP_PROBLEMS:
            return HTTP_PROBLEMS[kind]
    return _UNEXPECTED


def envelope(error: BaseException) -> bytes:
    """Encode an error as OpenAI's error object, without details if it is not a CotenantError."""
    problem = http_problem(error)
    if isinstance(error, CotenantError):
        param = error.field if isinstance(error, errors.BadAssignment) else problem.param
        cause = error.cause if isinstance(error, errors.EngineError) else None
        text = f"{error.message.rstrip('.')}. {error.hint}" if error.hint else error.message
        if isinstance(error, errors.EngineError):
            text = for_clients(text)
        return encode_error(text, problem.type, param, error.code, cause)
    return encode_error(
        "The gateway failed on this request; its log says why.", problem.type, None, "internal"
    )


def encode_error(message: str, kind: str, param: str | None, code: str, cause: str | None = None) -> bytes:
    """Encode OpenAI's error object; `cause` is our addition, only for errors of engines."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return encode_json({"error": error if cause is None else {**error, "cause": cause}})


def engine_error(status: int, reason: str | None) -> bytes:
    """Encode an engine's error, which was in another form, as OpenAI's error object."""
    what = f"the engine answered {status}" + (f": {reason}" if reason else " without a reason")
    return encode_error(what, "server_error" if status >= 500 else _INVALID, None, "engine_refused")


def error_in(body: bytes) -> Any:
    """Return `error` of a JSON body, which is an object in OpenAI's form; None if there is none."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return payload.get("error") if isinstance(payload, dict) else None


def reason_in(body: bytes) -> str | None:
    """Return what an error's body says, in one line and cut; None if it says nothing.

    Besides OpenAI's envelope, servers send FastAPI's `detail`, `{"error": "text"}`, `{"message": …}`, plain
    text and a proxy's page. JSON that says it in another field is returned itself.
    """
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text)
        text = reason_of(value) or (text if value else "")
    except (ValueError, RecursionError):
        text = html.unescape(_TAGS.sub(" ", text))
    text = " ".join(text.split())
    if len(text) > _MAX_REASON:
        text = text[:_MAX_REASON] + "…"
    return text or None


def reason_of(value: Any) -> str:
    """Return the text in a part of an error: itself, or what its usual fields say."""
    if isinstance(value, list):
        return "; ".join(filter(None, map(reason_of, value[:_NAMED])))
    if not isinstance(value, dict):
        return value if isinstance(value, str) else ""
    said = next(filter(None, (reason_of(value.get(name)) for name in _REASONS)), "")
    where = value.get("loc")
    return f"{'.'.join(map(str, where))}: {said}" if said and isinstance(where, list) else said


async def send_problem(
    send: Send, error: BaseException, headers: Iterable[Header] = (), problem: HttpProblem | None = None
) -> None:
    """Send an error, mapped by `problem`, or by its class if that is None."""
    problem = problem or http_problem(error)
    retry_after_s = error.retry_after_s if isinstance(error, CotenantError) else None
    await send_body(send, problem.status, envelope(error), *problem.headers(retry_after_s), *headers)
