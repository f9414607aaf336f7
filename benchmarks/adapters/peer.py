"""What a peer's adapter has to be able to do. Runs in every peer's environment: standard library only."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import quote

from . import work

CALLERS = 50


@dataclass(frozen=True)
class Place:
    """Where the database is."""

    host: str
    port: int
    user: str
    password: str
    database: str
    tls: bool = False
    redis: bool = False

    def url(self, scheme: str = "postgresql", **parameters: str) -> str:
        """Return the address as a URL; the parameters are added as they are."""
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        credentials = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"{scheme}://{credentials}@{self.host}:{self.port}/{self.database}{'?' if query else ''}{query}"

    @property
    def libpq(self) -> str:
        """The address for libpq's drivers and for asyncpg."""
        return self.url(sslmode="require" if self.tls else "disable")

    @property
    def redis_url(self) -> str:
        """The address for Redis's drivers; a self-made certificate will do."""
        return self.url("rediss", ssl_cert_reqs="none") if self.tls else self.url("redis")


class Peer(ABC):
    """One way to keep jobs in a database and run them when they are due.

    :cvar packages: distributions whose versions are reported
    :cvar pending: SQL (for peers on Redis: a script in Lua) that counts the one-offs that have not ended for the
        database; None where nobody can tell
    :cvar adds_while_running: whether the documented place to add from is the process that runs the scheduler
    :cvar registered: SQL or Lua that counts the stored recurring schedules, for peers that don't say when they are
        stored
    :cvar multiply: SQL that makes ``$1`` further schedules, due in a year, of the one that :meth:`add` has stored
    :cvar starts_nothing: why its scheduler cannot be started in an application; None: it can
    """

    packages: ClassVar[tuple[str, ...]] = ()
    pending: ClassVar[str | None] = None
    adds_while_running: ClassVar[bool] = False
    registered: ClassVar[str | None] = None
    multiply: ClassVar[str | None] = None
    starts_nothing: ClassVar[str | None] = None

    def __init__(self, place: Place, variant: str) -> None:
        self.place = place
        self.variant = variant

    @abstractmethod
    async def install(self) -> None:
        """Make the tables, as the peer's documentation says."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, so that :meth:`add` works; nothing is run yet."""

    @abstractmethod
    async def close(self) -> None:
        """Undo :meth:`open`, and :meth:`start` if that was called."""

    @abstractmethod
    async def add(self, key: str, due: float) -> None:
        """Store one one-off; return when it is stored."""

    async def add_many(self, items: Sequence[tuple[str, float]]) -> None:
        """Store many one-offs, the peer's own way if it has one; else concurrently."""
        await self.add_by(CALLERS, items)

    async def add_by(self, callers: int, items: Sequence[tuple[str, float]]) -> None:
        """Store the one-offs from that many concurrent callers, each one after another."""
        waiting = iter(items)

        async def caller() -> None:
            for key, due in waiting:
                await self.add(key, due)

        await asyncio.gather(*(caller() for _ in range(callers)))

    @abstractmethod
    async def start(self) -> None:
        """Begin to run what is due; return when the peer says that it does. :meth:`open` was called before."""

    def declare(self, schedules: int) -> None:
        """Do what an application's module does when it is imported: make objects, decorate functions; no connection."""
        self.schedules = schedules

    @abstractmethod
    async def start_registering(self) -> None:
        """Do what an application's lifespan does: connect, register the recurring schedules, start."""

    async def register_in_background(self) -> None:  # noqa: B027 - most have nothing to do
        """Do the rest of the registration, for peers whose documented way doesn't delay the application for it."""

    def ran(self) -> list[work.Run]:
        """Return what has run; the list is emptied by who takes it."""
        return work.RAN

    async def page(self) -> None:
        """List a page of 50 schedules.

        :raises NotImplementedError: if the peer has no such list
        """
        raise NotImplementedError("this peer has no paged list of schedules")


def moment(timestamp: float) -> datetime:
    """Return the Unix time as an aware ``datetime``."""
    return datetime.fromtimestamp(timestamp, UTC)


def sqlalchemy_arguments(place: Place) -> dict[str, Any]:
    """Return ``connect_args`` for SQLAlchemy over asyncpg."""
    return {"ssl": "require" if place.tls else "disable"}
