"""HTTP connections to checked addresses only: what ``http_request`` sends its requests through.

The check holds at the moment of connecting. A name is looked up once, every address it has is checked, and
the connection goes to one of exactly these, so a name that answers differently the second time (DNS
rebinding) gains nothing. TLS and the ``Host`` header keep the name. Each hop of a redirect passes here too.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import anyio
import httpcore
import httpx

from duetime.errors import AddressRefused, InvalidArguments

from .addresses import NOT_AN_ADDRESS, refused, why_refused

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the IP addresses of a host name, for a port. Raises ``OSError`` if there are none."""

MAX_URL_LENGTH = 8_000
_CONNECT_SECONDS = 5.0
"""How long one of several addresses of a host may take before the next one is tried."""

_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses that the operating system knows for a host name, in its order of preference."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def shown(url: httpx.URL) -> str:
    """Return a URL as errors and logs may show it: without user, password, query and fragment."""
    port = f":{url.port}" if url.port else ""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{url.scheme}://{host}{port}{url.path[:200]}"


def parse_url(text: str) -> httpx.URL:
    """Return the parsed URL.

    :raises InvalidArguments: if it is not an http or https URL with a host; it is not quoted, as it may hold
        a password
    """
    try:
        if len(text) > MAX_URL_LENGTH:
            raise InvalidArguments(f"expected a URL of at most {MAX_URL_LENGTH:,} characters, got {len(text):,}.")
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise InvalidArguments("expected a URL such as https://example.com/hook, got text that is none.") from None
    if url.scheme not in ("http", "https"):
        raise InvalidArguments(f"expected a URL that begins with http:// or https://, got {url.scheme or 'no scheme'}.")
    if not url.host or not 1 <= (url.port or 80) <= 65535:
        raise InvalidArguments("expected a URL with a host, and a port from 1 to 65535 if any, got neither.")
    return url


def check_url(url: str | httpx.URL, *, allow_private: bool = False) -> httpx.URL:
    """Return the parsed URL if a request to it may be tried; the name it holds is not looked up.

    Refused, unless ``allow_private``: literal addresses that are not public, ``localhost``, an IPv4 address
    in another spelling than four decimal numbers, a host that ends in a dot, and a user or password in the
    URL.

    :raises InvalidArguments: if it is not an http or https URL with a host
    :raises AddressRefused: if no request would ever be sent to it
    """
    url = parse_url(url) if isinstance(url, str) else url
    if allow_private:
        return url
    host = url.raw_host.decode("ascii")
    if url.userinfo:
        raise AddressRefused(
            f"expected a URL without user and password, got {shown(url)} with them. "
            f"Use an Authorization header instead."
        )
    if ":" in host:
        kind = why_refused(host)
    elif not _HOST_NAME.fullmatch(host):
        kind = "not a host name in its usual spelling"
    elif host == "localhost" or host.endswith(".localhost"):
        kind = "a loopback address"
    elif _NUMBER.fullmatch(host.rpartition(".")[2]):  # as a URL's host, this can only be an IPv4 address
        kind = why_refused(host)
        if kind == NOT_AN_ADDRESS:
            kind = "an IPv4 address in an unusual spelling"
    else:
        kind = None
    if kind is not None:
        raise refused(host, kind)
    return url


class _Stream(httpcore.AsyncNetworkStream):
    """A TCP connection that is closed when its TLS handshake is cancelled; httpcore 1.0 forgets it then."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()
            raise


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to checked addresses, and no other connections.

    :param allow_private: whether addresses that are not public may be reached; default no
    :param resolver: looks up names; default the operating system's resolver
    :param backend: opens the connection to a checked address; default httpcore's
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        resolver: Resolver = resolve,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._resolve = resolver
        self._backend = backend or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as exc:  # UnicodeError: a label of more than 63 characters
            raise httpcore.ConnectError(f"the host name cannot be looked up ({exc})") from exc
        # All of them: one private address among public ones is how a split or hostile zone looks.
        for address in () if self._allow_private else addresses:
            if kind := why_refused(address):
                raise refused(host, kind)
        if not addresses:
            raise httpcore.ConnectError("the host name has no address")
        *others, last = addresses
        for address in others:
            limit = _CONNECT_SECONDS if timeout is None else min(timeout, _CONNECT_SECONDS)
            try:
                stream = await self._backend.connect_tcp(address, port, limit, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
            return _Stream(stream)
        return _Stream(await self._backend.connect_tcp(last, port, timeout, local_address, socket_options))

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise refused("a Unix socket", "a local socket")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_stream():
            yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


class CheckedTransport(httpx.AsyncBaseTransport):
    """An httpx transport on :class:`CheckedBackend`; it also checks the spelling of each URL it is given.

    httpx has no public way to give its own transport a network backend, httpcore has, so this joins the two.
    Network errors come out as httpcore's.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        resolver: Resolver = resolve,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            network_backend=CheckedBackend(allow_private=allow_private, resolver=resolver, backend=backend),
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._pool.__aexit__(exc_type, exc_value, traceback)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = check_url(request.url, allow_private=self._allow_private)
        response = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response), extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._pool.aclose()
