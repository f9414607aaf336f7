"""Events between nodes over LISTEN/NOTIFY, through a connection that comes back by itself.

A NOTIFY is a hint: nothing is lost with it but time (promise 5). The store puts its hints into the statements that
make the change (:meth:`PostgresEventBroker.message`), so this module's own connection only listens.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from inspect import isawaitable
from logging import Logger, getLogger
from typing import Any, Protocol, Self
from uuid import UUID, uuid4

import apscheduler
import asyncpg
import attrs
from apscheduler import Event, RetrySettings
from apscheduler.abc import EventBroker, Serializer, Subscription
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine

from .errors import InvalidSettings
from .settings import DatabaseUrl

MAX_PAYLOAD = 7999
"""Bytes of the longest NOTIFY payload that PostgreSQL takes."""

# The events that may come from outside, by name: nothing else is ever built from a payload (CVE-2026-31072).
_EVENTS: dict[str, type[Event]] = {
    event.__name__: event
    for event in (
        apscheduler.TaskAdded,
        apscheduler.TaskUpdated,
        apscheduler.TaskRemoved,
        apscheduler.ScheduleAdded,
        apscheduler.ScheduleUpdated,
        apscheduler.ScheduleRemoved,
        apscheduler.JobAdded,
        apscheduler.JobRemoved,
        apscheduler.JobAcquired,
        apscheduler.JobReleased,
        apscheduler.SchedulerStarted,
        apscheduler.SchedulerStopped,
    )
}
# What the values of an event are; those of all other names are texts.
_KINDS: dict[str, type] = {
    "timestamp": datetime,
    "next_fire_time": datetime,
    "scheduled_start": datetime,
    "started_at": datetime,
    "job_id": UUID,
    "outcome": apscheduler.JobOutcome,
    "finished": bool,
}
_LONGEST_TEXT = 1000
# What the loops of a scheduler subscribe to.
_JOB_LOOP = frozenset({apscheduler.JobAdded, apscheduler.JobReleased})
_SCHEDULE_LOOP = frozenset({apscheduler.ScheduleAdded, apscheduler.ScheduleUpdated})
# The module of the loops, and so of what they subscribe; that of the class itself says where it is imported from.
_SCHEDULER = apscheduler.AsyncScheduler.subscribe.__module__


def encode(event: Event) -> str | None:
    """Return the event as ``Name {json}``, or None for a kind that stays on its node.

    Long texts are cut, because a payload has a limit and a traceback has none.
    """
    if type(event).__name__ not in _EVENTS:
        return None
    values: dict[str, Any] = {}
    for attribute in attrs.fields(type(event)):
        value = getattr(event, attribute.name)
        if value is None or attribute.name in ("exception_traceback", "exception"):
            continue
        if isinstance(value, str):
            value = value[:_LONGEST_TEXT].encode("utf-8", "backslashreplace").decode()
        elif hasattr(value, "isoformat"):
            value = value.isoformat()
        elif not isinstance(value, bool):
            value = getattr(value, "name", str(value))
        values[attribute.name] = value
    return f"{type(event).__name__} {to_json(values).decode()}"


def decode(text: str) -> Event | None:
    """Return the event of :func:`encode`'s text, or None if it is not one."""
    name, _, body = text.partition(" ")
    event_class = _EVENTS.get(name)
    if event_class is None:
        return None
    try:
        values = json.loads(body)
        for attribute in attrs.fields(event_class):
            # An event class has no default for what may well be unknown.
            if attribute.default is attrs.NOTHING:
                values.setdefault(attribute.name, None)
        event = event_class(**values)
        for name, value in attrs.asdict(event, recurse=False).items():
            if value is not None and not isinstance(value, _KINDS.get(name, str)):
                return None
        return event
    except Exception:  # whatever somebody has put on the channel is no event, and no more than that
        return None


class Ears(Protocol):
    """Connections that somebody else keeps, and that can listen."""

    async def listen(self, channel: str, receive: Callable[..., None]) -> asyncpg.Connection:
        """Listen on one of them, and return it; it goes on being used for other things."""

    def acquire(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend one of them."""


DEAF = (
    "A pooler is between this node and its database, so it does not hear other nodes, and finds what they do by its "
    "poll. Use the database's direct address, if there is one"
)


async def _is_pooled(connection: asyncpg.Connection) -> bool:
    """Return whether the server's session has another number than the connection was told, as behind a pooler."""
    answer = bytearray()

    async def take(data: bytes) -> None:
        answer.extend(data)

    # A COPY is sent as it is, without a prepared statement, which a pooler may not carry.
    await connection.copy_from_query("select pg_backend_pid()", output=take)
    told: int = connection.get_server_pid()
    return int(answer) != told


@dataclass(eq=False, slots=True)
class _LocalSubscription(Subscription):
    source: PostgresEventBroker
    callback: Callable[[Any], Any]
    event_types: frozenset[type[Event]] | None
    is_async: bool
    one_shot: bool
    loop: frozenset[type[Event]] | None
    """``_JOB_LOOP`` or ``_SCHEDULE_LOOP`` if it is a scheduler's loop that has subscribed, and not a user."""

    def unsubscribe(self) -> None:
        self.source._subscriptions.pop(self, None)
        self.source._heard.clear()


@attrs.define(eq=False, repr=False)
class PostgresEventBroker(EventBroker):
    """Carries events between the nodes of one database; takes the arguments of the stock ``AsyncpgEventBroker``.

    Cures of 4.0.0a6: the stock broker drops every event with anyio ≥ 4.14 (``start_soon`` outside a task), ends its
    LISTEN loop on other errors than ``InterfaceError``, builds any class a payload names, raises on payloads over
    7,999 bytes, and takes a connection whose other end has gone without a word for a living one.

    :param dsn: address of the database; a ``-pooler`` host of Neon is replaced by the direct one, because LISTEN does
        not work through a transaction-mode pooler
    :param options: further keyword arguments of :func:`asyncpg.connect`
    :param channel: NOTIFY channel; nodes that share a store share it
    :param max_idle_time: seconds after which a connection of the broker's own is asked whether it is still there
    :param serializer: accepted for compatibility; events have a form of their own that names no classes
    :param retry_settings: accepted for compatibility; the connection is tried again for ever, with back-off
    """

    dsn: str
    options: Mapping[str, Any] = attrs.field(factory=dict)
    channel: str = attrs.field(kw_only=True, default="duetime")
    max_idle_time: float = attrs.field(kw_only=True, default=10)
    serializer: Serializer | None = attrs.field(kw_only=True, default=None)
    retry_settings: RetrySettings | None = attrs.field(kw_only=True, default=None)
    connect: Callable[[], Awaitable[asyncpg.Connection]] | None = attrs.field(kw_only=True, default=None)
    """Opens the listening connection, where ``dsn`` and ``options`` do not say it all."""
    shares: Ears | None = attrs.field(kw_only=True, default=None)
    """Connections of a store, one of which listens too, in place of one of the broker's own."""

    origin: str = attrs.field(init=False, factory=lambda: uuid4().hex[:12])
    """Marks this broker's own messages, which it does not deliver a second time."""
    on_hint: Callable[[Event | None], None] | None = attrs.field(init=False, default=None)
    """Called with each event from another node, and with None after a gap in listening."""
    is_deaf: bool = attrs.field(init=False, default=False)
    """Whether a pooler is between, so that the connection listens and hears nothing."""
    _subscriptions: dict[_LocalSubscription, None] = attrs.field(init=False, factory=dict)
    # What has_subscribers() has found since somebody has last subscribed or unsubscribed.
    _heard: dict[type[Event], bool] = attrs.field(init=False, factory=dict)
    _deliveries: set[asyncio.Task[None]] = attrs.field(init=False, factory=set)
    _connection: asyncpg.Connection | None = attrs.field(init=False, default=None)
    _listener: asyncio.Task[None] | None = attrs.field(init=False, default=None)
    _listening: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    _speaking: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    _logger: Logger = attrs.field(init=False, factory=lambda: getLogger(__name__))

    @classmethod
    def from_async_sqla_engine(
        cls, engine: AsyncEngine, options: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Self:
        """Make a broker for the database of a SQLAlchemy engine.

        :param engine: an engine for ``postgresql+asyncpg://``; only its URL is used, so arguments that were given to
            ``create_async_engine(connect_args=…)`` must be given here too, as ``options``
        :raises InvalidSettings: if the engine has another driver
        """
        if engine.dialect.name != "postgresql" or engine.dialect.driver != "asyncpg":
            raise InvalidSettings(
                f"expected an engine for PostgreSQL over asyncpg (postgresql+asyncpg://…), got "
                f"{engine.dialect.name}+{engine.dialect.driver}."
            )
        return cls(engine.url.render_as_string(hide_password=False), options or {}, **kwargs)

    def __repr__(self) -> str:
        return f"PostgresEventBroker(channel={self.channel!r})"

    # -- APScheduler's contract ---------------------------------------------------------------------------------------

    async def start(self, exit_stack: AsyncExitStack, logger: Logger) -> None:
        """Begin to listen, in the background: an unreachable database delays events, not the start."""
        self._logger = logger
        listener = self._listener = asyncio.create_task(self._listen(), name="duetime listener")
        exit_stack.push_async_callback(self._stop, listener)
        await asyncio.sleep(0)  # it asks for its connection before anybody does whose first look should miss nothing

    async def publish(self, event: Event) -> None:
        """Deliver the event here and, if the connection is up, on the other nodes."""
        await self.publish_local(event)
        message = self.message([event])
        if message and self._connection is not None:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with self._speaker() as connection:
                    await connection.execute("select pg_notify($1, $2)", self.channel, message, timeout=5)

    @asynccontextmanager
    async def _speaker(self) -> AsyncIterator[asyncpg.Connection]:
        if self.shares is not None:
            async with self.shares.acquire() as connection:
                yield connection
        elif (own := self._connection) is not None:
            async with self._speaking:  # the driver does one thing at a time
                yield own

    async def publish_local(self, event: Event) -> None:
        """Deliver the event to the subscribers on this node."""
        self.deliver(event)

    def subscribe(
        self,
        callback: Callable[[Any], Any],
        event_types: Iterable[type[Event]] | None = None,
        *,
        is_async: bool = True,
        one_shot: bool = False,
    ) -> Subscription:
        """Call ``callback`` with each event of the given types (None: all) until unsubscribed."""
        types = frozenset(event_types) if event_types else None
        is_of_scheduler = getattr(callback, "__module__", None) == _SCHEDULER
        loop = types if is_of_scheduler and types in (_JOB_LOOP, _SCHEDULE_LOOP) else None
        subscription = _LocalSubscription(self, callback, types, is_async, one_shot, loop)
        self._subscriptions[subscription] = None
        self._heard.clear()
        return subscription

    # -- for the store ------------------------------------------------------------------------------------------------

    def message(self, events: Iterable[Event], *, everyone: bool = False) -> str:
        """Return a NOTIFY payload for the other nodes, or for all; empty when none of the events travels.

        What does not fit into one payload is left out: it is a hint.
        """
        return next(iter(self.messages(events, everyone=everyone)), "")

    def messages(self, events: Iterable[Event], *, everyone: bool = False) -> list[str]:
        """Return as many payloads as the events that travel need, for what somebody may be waiting for."""
        origin = "*" if everyone else self.origin
        payloads: list[str] = []
        room = 0
        for event in events:
            line = f"\n{encoded}" if (encoded := encode(event)) else ""
            size = len(line.encode())
            if not line or len(origin) + size > MAX_PAYLOAD:
                continue
            if size > room:
                payloads.append(origin)
                room = MAX_PAYLOAD - len(origin)
            payloads[-1] += line
            room -= size
        return payloads

    def has_subscribers(self, event_type: type[Event]) -> bool:
        """Return whether anybody on this node wants events of the type, the scheduler's own loops aside."""
        if (known := self._heard.get(event_type)) is None:
            known = self._heard[event_type] = any(
                subscription.loop is None
                and (subscription.event_types is None or event_type in subscription.event_types)
                for subscription in self._subscriptions
            )
        return known

    def nudge_workers(self) -> None:
        """Make this node's job loop ask for jobs, without an event that other subscribers would see."""
        event = apscheduler.JobAdded(job_id=uuid4(), task_id="", schedule_id=None)
        for subscription in list(self._subscriptions):
            if subscription.loop == _JOB_LOOP:
                self._start(subscription, event)

    def nudge_schedulers(self) -> None:
        """Make this node's schedule loop look for due schedules, without an event that other subscribers would see."""
        event = apscheduler.ScheduleUpdated(schedule_id="", task_id="", next_fire_time=datetime.fromtimestamp(0, UTC))
        for subscription in list(self._subscriptions):
            if subscription.loop == _SCHEDULE_LOOP:
                self._start(subscription, event)

    def deliver(self, event: Event) -> None:
        """Start the callbacks of the event's subscribers; must be called on the event loop."""
        for subscription in list(self._subscriptions):
            if subscription.event_types is None or type(event) in subscription.event_types:
                if subscription.one_shot:
                    subscription.unsubscribe()
                self._start(subscription, event)

    def _start(self, subscription: _LocalSubscription, event: Event) -> None:
        delivery = asyncio.get_running_loop().create_task(self._call(subscription, event))
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

    async def _call(self, subscription: _LocalSubscription, event: Event) -> None:
        try:
            if subscription.is_async:
                outcome = subscription.callback(event)
                if isawaitable(outcome):
                    await outcome
            else:
                await asyncio.to_thread(subscription.callback, event)
        except (Exception, SystemExit, KeyboardInterrupt):  # which would end the process
            self._logger.exception("A subscriber failed on %s", type(event).__name__)

    # -- listening ----------------------------------------------------------------------------------------------------

    async def wait_listening(self) -> None:
        """Wait until the connection listens."""
        await self._listening.wait()

    @property
    def is_listening(self) -> bool:
        """Whether what other nodes say is heard."""
        return self._connection is not None and not self._connection.is_closed() and not self.is_deaf

    async def _open(self) -> asyncpg.Connection:
        if self.connect is not None:
            return await self.connect()
        url = DatabaseUrl.parse(self.dsn).direct
        return await asyncpg.connect(**{"timeout": 10, **url.asyncpg_arguments(), **self.options})

    async def _listen(self) -> None:
        """Keep one listening connection for as long as the broker runs."""
        wait = 0.0
        while True:
            own: asyncpg.Connection | None = None
            try:
                if self.shares is not None:
                    connection = await self.shares.listen(self.channel, self._receive)
                else:
                    connection = own = await self._open()
                    await own.add_listener(self.channel, self._receive)
                    self.is_deaf = await _is_pooled(own)
                    if self.is_deaf:
                        self._logger.warning(DEAF)
                wait = 0.0
                await self._hear(connection, pings=own is not None)
                self._logger.warning("The listening connection was lost; connecting again")
            except Exception as exc:  # an address that cannot be read today may be right tomorrow
                self._logger.warning("Cannot listen for events (%s: %s); trying again", type(exc).__name__, exc)
            finally:
                self._connection = None
                self._listening.clear()
                if own is not None:
                    own.terminate()
            wait = min(1.0, wait * 2 or 0.05)
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnecting nodes

    async def _hear(self, connection: asyncpg.Connection, *, pings: bool) -> None:
        """Return when the connection does not listen any more.

        :param pings: ask now and then whether the other end is still there, which nobody else does
        """
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        self._connection = connection
        self._listening.set()
        # Whatever was said while nobody listened has to be looked up.
        if self.on_hint is not None:
            self.on_hint(None)
        while not (connection.is_closed() or lost.is_set()):
            try:
                async with asyncio.timeout(self.max_idle_time if pings else None):
                    await lost.wait()
            except TimeoutError:
                async with self._speaking:
                    await connection.execute("select 1", timeout=5)

    def stop_listening(self) -> None:
        """Listen no more, ahead of the end: whoever keeps the connections is about to close them."""
        if self._listener is not None:
            self._listener.cancel()

    async def _stop(self, listener: asyncio.Task[None]) -> None:
        listener.cancel()
        await asyncio.wait([listener])
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=1)

    def _receive(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        origin, *texts = str(payload).split("\n")
        if origin == self.origin:
            return
        for text in texts:
            event = decode(text)
            if event is None:
                self._logger.warning("Ignored a notification that is not an event: %.100r", text)
                continue
            if self.on_hint is not None:
                self.on_hint(event)
            self.deliver(event)
