"""What a measurement has at hand: a server, databases with a peer's tables, ways of a chosen length, the peers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from .driver import Driver
from .errors import PeerFailed
from .places import ROOT, cache
from .redis_server import RedisServer
from .scale import Scale
from .server import Server

Figures = dict[str, tuple[float, str]]
"""What one measurement found: figure → value and unit."""


class FiguresOverTime(Figures):
    """Figures, and beside them some that have a value for each second of the measurement.

    :ivar series: figure → its values, the first second's first, and their unit
    """

    def __init__(self, figures: Figures, series: dict[str, tuple[list[float], str]]) -> None:
        super().__init__(figures)
        self.series = series


ON_REDIS = ("saq", "streaq", "celery")
"""The peers that keep their jobs in Redis."""


@dataclass(frozen=True)
class Case:
    """One peer in one variant of a benchmark.

    :ivar store: which of the peer's own ways to store is used; "" where there is one
    :ivar variant: how the variant is named in the results
    :ivar size: how much: jobs, schedules, processes; the benchmark says
    """

    peer: str
    store: str = ""
    variant: str = ""
    rtt: float = 0.0
    size: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The peer and its store, as results show them."""
        return f"{self.peer} {self.store}".strip()

    @property
    def on_redis(self) -> bool:
        """Whether the peer keeps its jobs in Redis."""
        return self.peer in ON_REDIS


@dataclass(frozen=True)
class Database:
    """One database on one of the run's servers."""

    server: Server | RedisServer
    name: str

    @property
    def place(self) -> dict[str, Any]:
        """What a peer needs in order to connect straight to it."""
        return self.server.place(self.name)

    async def connect(self) -> Any:
        """Open a connection to look at it, past any proxy: its ``fetchval`` takes SQL, with Redis a script in Lua."""
        return await self.server.connect(self.name)


class Way:
    """A way to a database through the proxy, which counts."""

    def __init__(self, place: dict[str, Any], process: asyncio.subprocess.Process) -> None:
        self.place = place
        self._process = process

    async def take(self) -> dict[str, int]:
        """Return what has crossed since the last time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        await self._process.stdin.drain()
        counts: dict[str, int] = json.loads(await self._process.stdout.readline())
        return counts


class Lab:
    """The server of a run and what was made on it."""

    def __init__(self, server: Server, scale: Scale) -> None:
        self.server = server
        self.scale = scale
        self._stack = AsyncExitStack()
        self._templates: dict[tuple[str, str], asyncio.Future[str]] = {}
        self._redis: RedisServer | None = None
        self._starting_redis = asyncio.Lock()
        self.versions: dict[str, dict[str, str]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def peer(self, case: Case, place: dict[str, Any]) -> AsyncIterator[Driver]:
        """Run the case's peer, told where its database is; it is not connected yet."""
        driver = await Driver.start(case.peer)
        try:
            self.versions[case.peer] = {"python": driver.about["python"], **driver.about["versions"]}
            await driver.ask("place", variant=case.store, **place)
            yield driver
        finally:
            await driver.end()

    @asynccontextmanager
    async def database(self, case: Case) -> AsyncIterator[Database]:
        """Make a database with the peer's tables, empty.

        :raises NotMeasurable: if the peer needs Redis, and there is no redis-server
        """
        if case.on_redis:
            redis = await self.redis()
            async with redis.database() as name:
                yield Database(redis, name)
        else:
            async with self.server.database(await self._template(case)) as name:
                yield Database(self.server, name)

    async def redis(self) -> RedisServer:
        """Return the run's redis-server; starts it when it is first needed."""
        async with self._starting_redis:
            if self._redis is None:
                self._redis = await self._stack.enter_async_context(RedisServer())
        return self._redis

    @property
    def redis_or_none(self) -> RedisServer | None:
        """The run's redis-server, if one was needed."""
        return self._redis

    async def _template(self, case: Case) -> str:
        """Return a database that the peer has made its tables in, once for the run."""
        key = (case.peer, case.store)
        if key not in self._templates:
            made = self._templates[key] = asyncio.get_running_loop().create_future()
            try:
                template = await self._stack.enter_async_context(self.server.database())
                async with self.peer(case, self.server.place(template)) as driver:
                    await driver.ask("install")
                made.set_result(template)
            except BaseException as exc:
                made.set_exception(exc)
                made.exception()  # whoever else waits gets it; nobody has to
        return await asyncio.shield(self._templates[key])

    @asynccontextmanager
    async def way(self, database: Database, rtt: float) -> AsyncIterator[Way]:
        """Open a way to the database: with TLS if there is a distance, without at none."""
        redis = isinstance(database.server, RedisServer)
        order: dict[str, Any] = {"rtt": rtt, "to": database.server.address, "redis": redis}
        if rtt:
            order["tls"] = certificate()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.proxy",
            json.dumps(order),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 20)
            if not line:
                raise PeerFailed("the proxy did not start")
            place = database.place | {"host": "127.0.0.1", "port": int(line), "tls": bool(rtt)}
            yield Way(place, process)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()


def certificate() -> Sequence[str]:
    """Return the files of a self-made certificate and its key, made once."""
    import trustme

    chain, key = cache("tls", "certificate.pem"), cache("tls", "key.pem")
    if not (chain.exists() and key.exists()):
        made = trustme.CA().issue_cert("localhost", "127.0.0.1")
        key.touch(mode=0o600)
        made.private_key_pem.write_to_path(key)
        made.cert_chain_pems[0].write_to_path(chain)
    return str(chain), str(key)
