"""Who may use the API: a bearer token, and no web page of another origin."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from fastapi import Request
from pydantic import SecretStr

from ..errors import CrossOriginRefused, Unauthorized
from .runtime import Runtime

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def admit(request: Request, runtime: Runtime) -> None:
    """Let the request pass, or raise.

    With ``Settings.api_token`` every request must carry it. Without one, requests that change something must
    not come from a web page of another origin: a browser would send them to a loopback address as readily as
    its user does.

    :raises Unauthorized: if the token is missing or wrong
    :raises CrossOriginRefused: if a browser says that the request comes from elsewhere
    """
    if (token := runtime.settings.api_token) is not None:
        check_token(request, token)
    elif request.method not in SAFE_METHODS and _bearer(request) is None:
        # A browser never adds a bearer token by itself, so a request with one was not forged by a page;
        # whether it is the right one is up to whatever the application put in front of this router.
        check_origin(request)


def check_token(request: Request, token: SecretStr) -> None:
    """Compare the request's bearer token (RFC 6750, section 2.1) in constant time.

    An empty token of ours fits nothing, so a slip in the configuration closes the API instead of opening it.

    :raises Unauthorized: if it is missing or another
    """
    given = _bearer(request)
    expected = token.get_secret_value()
    if given is None:
        raise Unauthorized(
            "expected the header `Authorization: Bearer <token>` with the token of DUETIME_API_TOKEN, got none."
        )
    if not expected or not hmac.compare_digest(given.encode(), expected.encode()):
        raise Unauthorized(
            "expected the token of DUETIME_API_TOKEN in `Authorization: Bearer <token>`, got another one."
        )


def check_origin(request: Request) -> None:
    """Refuse what a browser sends for a page of another origin.

    The rule is that of Go's ``net/http.CrossOriginProtection``: ``Sec-Fetch-Site`` decides where the browser
    sends it; otherwise ``Origin``, when there is one, must name our host. Programs send neither and pass. It
    does not stop DNS rebinding, where the page's host name is ours; a check of the ``Host`` header does.

    :raises CrossOriginRefused: if the page is another origin's
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site in ("same-origin", "none") or (site is None and (origin is None or _is_ours(origin, request))):
        return
    raise CrossOriginRefused(
        f"expected a request from a page of {request.headers.get('host', 'this host')}, got one from "
        f"{(origin or site)!r}. Call the API from the application's own origin or its server, or set "
        f"DUETIME_API_TOKEN and send the token."
    )


def _is_ours(origin: str, request: Request) -> bool:
    try:
        netloc = urlsplit(origin).netloc
    except ValueError:
        return False
    return bool(netloc) and netloc.lower() == request.headers.get("host", "").lower()


def _bearer(request: Request) -> str | None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None
