from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import pytest

from .sink import CERTIFICATE, Sink, running_sink


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with running_sink() as running:
        yield running


@pytest.fixture
async def tls_sink() -> AsyncIterator[Sink]:
    """The same behind TLS, as service.example; it notes the name (SNI) that each client asks for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with running_sink(context) as running:
        context.sni_callback = lambda _socket, name, _context: running.names_asked_for.append(name)
        yield running
