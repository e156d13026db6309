"""Bodies of requests and responses about a browser's session."""

from typing import Annotated

from pydantic import BaseModel, Field

from cotenant.gateway.http.bodies import RequestModel


class SessionRequest(RequestModel):
    """The key to sign in with."""

    key: Annotated[str, Field(min_length=1, max_length=1024)]


class SessionResponse(BaseModel):
    """Whether a key is needed, and whether this browser is signed in.

    Requests that change something must send `csrf` in the header `X-Cotenant-CSRF`; null without a session.
    """

    needed: bool
    signed_in: bool
    csrf: str | None
