"""The task ``http_request``: call a URL on time."""

from __future__ import annotations

import asyncio
import codecs
import re
import ssl
import zlib
from functools import cache
from importlib.metadata import version
from typing import Annotated, Literal

import httpcore
import httpx
from apscheduler import current_job
from pydantic import AfterValidator, Field, JsonValue, WithJsonSchema
from pydantic_core import PydanticCustomError

from duetime.errors import InvalidArguments, RequestFailed, UnexpectedResponse
from duetime.tasks import task

from .addresses import private_allowed
from .connection import MAX_URL_LENGTH, CheckedTransport, check_url, parse_url, shown

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]
Status = Annotated[int, Field(ge=100, le=599)]

MAX_READ_BYTES = 1_048_576
"""Reading a response's body stops here; the connection is closed then."""
MAX_BODY_CHARACTERS = 10_000
MAX_REDIRECTS = 5
_ERROR_CHARACTERS = 500
_BODY_BYTES = 4 * MAX_BODY_CHARACTERS  # the longest character of any encoding below takes four bytes
_USER_AGENT = f"duetime/{version('duetime')}"
_NO_RESPONSE = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)
_RESULT_HEADERS = ("content-type", "location", "retry-after", "etag", "x-request-id")

# An encoding is named by the server that answers. Only these are used: some that Python knows decode in
# quadratic time or are no text at all.
_ENCODINGS = frozenset(
    {
        "utf-8",
        "ascii",
        "iso8859-1",
        "iso8859-2",
        "iso8859-5",
        "iso8859-15",
        "cp1250",
        "cp1251",
        "cp1252",
        "koi8-r",
    }
    | {
        "utf-16",
        "utf-16-le",
        "utf-16-be",
        "shift_jis",
        "euc_jp",
        "euc_kr",
        "gb2312",
        "gbk",
        "gb18030",
        "big5",
    }
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")  # RFC 9110 §5.6.2
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]{0,8000}")
_FRAMING_HEADERS = frozenset({"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer"})


def _http_url(value: str) -> str:
    try:
        parse_url(value)
    except InvalidArguments as exc:
        raise PydanticCustomError("http_url", "{problem}", {"problem": exc.message}) from None
    return value


def _plain_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise PydanticCustomError(
                "header",
                "expected printable ASCII characters, got others in header {name}",
                {"name": repr(name[:50])},
            )
        if name.lower() in _FRAMING_HEADERS:
            raise PydanticCustomError(
                "header",
                "expected no header that describes the connection, got {name}; leave it out",
                {"name": name},
            )
    return headers


HttpUrl = Annotated[
    str,
    AfterValidator(_http_url),
    WithJsonSchema(
        {
            "type": "string",
            "format": "uri",
            "pattern": "^https?://",
            "maxLength": MAX_URL_LENGTH,
            "title": "URL",
            "description": "http or https URL of a public host, without user and password.",
            "examples": ["https://example.com/hook"],
        }
    ),
]
Headers = Annotated[dict[str, str], AfterValidator(_plain_headers)]


@cache
def _ssl_context() -> ssl.SSLContext:
    # SSL_CERT_FILE and SSL_CERT_DIR are honoured, as an operator behind a corporate authority needs them.
    return httpx.create_ssl_context()


@task(name="http_request")
async def http_request(
    url: HttpUrl,
    method: Annotated[Method, Field(description="HTTP method.")] = "GET",
    *,
    headers: Annotated[
        Headers | None,
        Field(description="Headers. `Idempotency-Key` (the job's id) and `User-Agent` are set unless given."),
    ] = None,
    json: Annotated[JsonValue, Field(description="Body, sent as JSON. Not together with `body`.")] = None,
    body: Annotated[
        str | None, Field(description="Body, sent as UTF-8 text; name its type in a `Content-Type` header.")
    ] = None,
    params: Annotated[
        dict[str, str | int | float | bool] | None,
        Field(description="Query parameters, added to those of the URL."),
    ] = None,
    expected_status: Annotated[
        Status | Annotated[list[Status], Field(min_length=1)] | None,
        Field(description="Status code or codes that count as success; default: 200 to 299."),
    ] = None,
    timeout: Annotated[
        float,
        Field(gt=0, le=300, description="Seconds all of it may take, redirects and body included."),
    ] = 30,
    follow_redirects: Annotated[
        bool,
        Field(description="Follow up to 5 redirects; default: a redirect is the response."),
    ] = False,
) -> dict[str, JsonValue]:
    """Send an HTTP request; the run succeeds if the response has the expected status (default: any 2xx).

    The result is ``{"status", "headers", "body", "truncated"}``: of the headers a few that say what came, of
    the body the first 10,000 characters. After a crash the request may be sent a second time, with the same
    ``Idempotency-Key`` header, which is the job's id: let the server use it to tell the two apart.

    Private, loopback and other non-public addresses are refused unless the operator allows them
    (``DUETIME_HTTP_ALLOW_PRIVATE``), at each hop of a redirect again. Proxies and passwords of the
    environment (``HTTPS_PROXY``, ``.netrc``) are not used. When redirects are followed, httpx takes
    ``Authorization`` off a request that goes to another host; headers of other names go along.

    :raises AddressRefused: if the URL or a redirect leads to an address that tasks may not reach
    :raises UnexpectedResponse: if another status came; the message has the status and the start of the body
    :raises RequestFailed: if no whole response came in time
    :raises InvalidArguments: if the arguments make no request
    """
    allow_private = private_allowed.get()
    target = check_url(url, allow_private=allow_private)
    if json is not None and body is not None:
        raise InvalidArguments("expected `json` or `body`, got both. Leave one of them out.")
    if not _ssl_context.cache_info().currsize:
        await asyncio.to_thread(_ssl_context)  # promise 7: reading the certificates takes about 40 ms
    try:
        async with (
            asyncio.timeout(timeout) as deadline,
            httpx.AsyncClient(
                transport=CheckedTransport(allow_private=allow_private, ssl_context=_ssl_context()),
                trust_env=False,
                timeout=None,  # noqa: S113 - the deadline above is for all of it
                max_redirects=MAX_REDIRECTS,
                follow_redirects=follow_redirects,
            ) as client,
        ):
            try:
                request = client.build_request(
                    method,
                    target,
                    headers=_headers(headers or {}),
                    json=json,
                    content=body,
                    params=None if params is None else target.params.merge(params),
                )
            except ValueError as exc:  # NaN, a lone surrogate: what JSON or UTF-8 cannot hold
                raise InvalidArguments(f"expected a body that can be sent, got one that cannot: {exc}.") from None
            response = await client.send(request, stream=True)
            try:
                text, truncated = await _read(response)
            finally:
                await response.aclose()
    except TimeoutError:
        if not deadline.expired():
            raise
        raise RequestFailed(
            f"expected a response from {shown(target)} within {timeout:g} s, got none. The server may have "
            f"acted on the request all the same; raise `timeout` if it needs longer."
        ) from None
    except _NO_RESPONSE as exc:
        raise RequestFailed(
            f"expected a response from {shown(target)}, got {type(exc).__name__}: {exc}."[:_ERROR_CHARACTERS]
        ) from exc
    if not _is_expected(response.status_code, expected_status):
        raise _unexpected(response, text, expected_status)
    return {
        "status": response.status_code,
        "headers": {name: response.headers[name][:500] for name in _RESULT_HEADERS if name in response.headers},
        "body": text,
        "truncated": truncated,
    }


def _headers(given: dict[str, str]) -> httpx.Headers:
    headers = httpx.Headers(
        {
            "User-Agent": _USER_AGENT,
            # A compressed body could grow a thousandfold in memory, and each connection serves one request.
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
    )
    if job := current_job.get(None):
        headers["Idempotency-Key"] = str(job.id)  # promise 3: the same in every attempt
    headers.update(given)
    return headers


async def _read(response: httpx.Response) -> tuple[str, bool]:
    """Return the start of the body as text that any store can hold, and whether there was more."""
    content, size = bytearray(), 0
    async for chunk in response.aiter_raw():
        content += chunk[: max(0, MAX_READ_BYTES - size)]
        size += len(chunk)
        if size > MAX_READ_BYTES:
            break
    data, more = bytes(content), size > MAX_READ_BYTES
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding in ("gzip", "deflate"):  # sent although it was not asked for
        inflater = zlib.decompressobj(wbits=47)  # either header
        try:
            data = inflater.decompress(data, _BODY_BYTES + 1)
        except zlib.error:
            data = b""
        more = more or bool(inflater.unconsumed_tail)
    elif encoding != "identity":
        data, more = b"", True
    text = data[:_BODY_BYTES].decode(_text_encoding(response.charset_encoding), errors="replace")
    truncated = more or len(data) > _BODY_BYTES or len(text) > MAX_BODY_CHARACTERS
    # PostgreSQL's text and jsonb hold any character but NUL.
    return text[:MAX_BODY_CHARACTERS].replace("\x00", "\ufffd"), truncated


def _text_encoding(named: str | None) -> str:
    try:
        name = codecs.lookup(named or "utf-8").name
    except (LookupError, ValueError):
        return "utf-8"
    return name if name in _ENCODINGS else "utf-8"


def _is_expected(status: int, expected: int | list[int] | None) -> bool:
    if expected is None:
        return 200 <= status <= 299
    return status in expected if isinstance(expected, list) else status == expected


def _unexpected(response: httpx.Response, text: str, expected: int | list[int] | None) -> UnexpectedResponse:
    if expected is None:
        wanted = "200 to 299"
    else:
        wanted = " or ".join(map(str, expected if isinstance(expected, list) else [expected]))
    came = f"{response.status_code} from {response.request.method} {shown(response.request.url)}"
    hint = " Set follow_redirects to go where it leads." if response.has_redirect_location else ""
    start = text[:_ERROR_CHARACTERS]
    return UnexpectedResponse(
        f"expected status {wanted}, got {came}.{hint} The body begins: {start!r}",
        details=[{"where": "response", "problem": f"status {response.status_code}", "body": start}],
    )
