"""A relay in front of PostgreSQL or Redis that stands in for distance, and counts.

``python -m benchmarks.proxy '{"rtt": 0.07, "tls": [certificate, key], "to": ["127.0.0.1", 5432]}'`` prints its port;
every line on standard input is answered with the counts since the line before. Bytes are held back for half the
round-trip time in each direction, a new connection for a whole one more (TCP's handshake); the throughput is not
limited. With ``tls`` it ends TLS behind the delay, so the handshake crosses the distance as it would with a server
that speaks TLS itself: after PostgreSQL's question for it, or with ``"redis": true`` from the first byte.

A round trip is a burst of requests: bytes from the client after bytes from the server. Opening a connection is one.
Statements are the messages Query and Execute of PostgreSQL's protocol; they can be told only without TLS, and of Redis
none are counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import struct
import sys
from contextlib import suppress

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


class Counts:
    """What has crossed the relay."""

    def __init__(self) -> None:
        self.round_trips = 0
        self.connections = 0
        self.statements = 0

    def take(self) -> dict[str, int]:
        """Return the counts and begin anew."""
        counts = dict(vars(self))
        self.__init__()  # type: ignore[misc]
        return counts


class StatementCounter:
    """Counts the statements in what a client sends over one connection."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._buffer = bytearray()
        self._started = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._buffer += data
        while True:
            head = 1 if self._started else 0  # the first message has no type
            if len(self._buffer) < head + 4:
                return
            length = head + struct.unpack_from("!i", self._buffer, head)[0]
            if len(self._buffer) < length:
                return
            if self._started and self._buffer[0] in b"QE":
                self._counts.statements += 1
            self._started = self._started or bytes(self._buffer[:length]) != SSL_REQUEST
            del self._buffer[:length]


class Relay:
    """Carries connections to ``to``, late."""

    def __init__(self, to: tuple[str, int], rtt: float, *, reads_statements: bool) -> None:
        self.counts = Counts()
        self._to = to
        self._delay = rtt / 2
        self._rtt = rtt
        self._reads_statements = reads_statements

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either end closes it."""
        counts = self.counts
        counts.connections += 1
        counts.round_trips += 1
        not_before = asyncio.get_running_loop().time() + self._rtt
        try:
            far_reader, far_writer = await connect(self._to)
        except OSError:
            writer.transport.abort()
            return
        statements = StatementCounter(counts)
        server_spoke = True

        def sent(data: bytes) -> None:
            nonlocal server_spoke
            if server_spoke:
                server_spoke = False
                counts.round_trips += 1
            if self._reads_statements:
                statements.feed(data)

        def received(_data: bytes) -> None:
            nonlocal server_spoke
            server_spoke = True

        await asyncio.gather(
            late(reader, far_writer, self._delay, sent, not_before),
            late(far_reader, writer, self._delay, received, 0.0),
        )


async def connect(to: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a server at a TCP address, or to PostgreSQL at the directory of its Unix socket."""
    host, port = to
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    return await asyncio.open_connection(host, port)


async def late(reader, writer, delay, seen, not_before) -> None:  # type: ignore[no-untyped-def]
    """Hand on what comes, ``delay`` seconds later; reading never waits for that."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            at, data = await queue.get()
            if (wait := at - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not data:
                return
            writer.write(data)
            await writer.drain()

    delivering = asyncio.create_task(deliver())
    with suppress(OSError):
        while data := await reader.read(65536):
            seen(data)
            if delay:
                queue.put_nowait((max(loop.time(), not_before) + delay, data))
            else:
                writer.write(data)
                await writer.drain()
    queue.put_nowait((loop.time() + delay, b""))
    with suppress(OSError, ssl.SSLError):
        await delivering
    with suppress(OSError, RuntimeError):
        writer.close()


def terminator(to: tuple[str, int], context: ssl.SSLContext | None):  # type: ignore[no-untyped-def]
    """Return a server's callback that speaks PostgreSQL's TLS to the client and none to the server.

    :param context: None if the TLS has begun already, as Redis's does
    """

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = b"" if context is None else await reader.readexactly(8)
            if context is not None and first == SSL_REQUEST:
                writer.write(b"S")
                await writer.start_tls(context)
                first = b""
            far_reader, far_writer = await connect(to)
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()
            return
        far_writer.write(first)
        nothing = lambda _data: None  # noqa: E731
        await asyncio.gather(late(reader, far_writer, 0, nothing, 0.0), late(far_reader, writer, 0, nothing, 0.0))

    return carry


async def main(order: dict) -> None:  # type: ignore[type-arg]
    """Relay until standard input ends."""
    to = (order["to"][0], order["to"][1])
    if order.get("tls"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*order["tls"])
        if order.get("redis"):
            behind = await asyncio.start_server(terminator(to, None), "127.0.0.1", 0, ssl=context)
        else:
            behind = await asyncio.start_server(terminator(to, context), "127.0.0.1", 0)
        to = behind.sockets[0].getsockname()[:2]
    relay = Relay(to, order["rtt"], reads_statements=not (order.get("tls") or order.get("redis")))
    server = await asyncio.start_server(relay.carry, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(json.dumps(relay.counts.take()), flush=True)
    os._exit(0)  # connections that are still open end with the process


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
