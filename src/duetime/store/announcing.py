"""Who is told of a change: this node at once, the other nodes by the statement that makes it."""

from __future__ import annotations

from collections.abc import Iterable

from apscheduler import Event
from apscheduler.abc import EventBroker

from ..broker import PostgresEventBroker
from .transactions import current_transaction


def message(broker: EventBroker, events: Iterable[Event]) -> tuple[str, str]:
    """Return channel and payload for the ``pg_notify`` inside a statement; an empty payload tells nobody."""
    if not isinstance(broker, PostgresEventBroker):
        return "", ""
    # In the caller's transaction nothing has happened until it commits, on this node either.
    everyone = current_transaction.get() is not None
    return broker.channel, broker.message(events, everyone=everyone)


def messages(broker: EventBroker, events: Iterable[Event]) -> tuple[str, list[str]]:
    """Return channel and payloads for events that somebody may be waiting for: none of them is left out."""
    return (broker.channel, broker.messages(events)) if isinstance(broker, PostgresEventBroker) else ("", [])


async def announce(broker: EventBroker, events: Iterable[Event]) -> None:
    """Deliver events on this node, after the statement that made the change has told the other nodes."""
    if current_transaction.get() is not None:
        return
    for event in events:
        if isinstance(broker, PostgresEventBroker):
            broker.deliver(event)
        else:
            await broker.publish(event)
