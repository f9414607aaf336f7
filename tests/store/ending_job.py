"""Runs one job that would end the process, and one after it; started by a test as a process of its own.

usage: ending_job.py stock|ours SystemExit|KeyboardInterrupt ADDRESS
"""

from __future__ import annotations

import asyncio
import builtins
import sys

from apscheduler import AsyncScheduler
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from sqlalchemy.engine import URL

from duetime.broker import PostgresEventBroker
from duetime.scheduler import build_scheduler
from duetime.settings import DatabaseUrl, Settings
from duetime.store.connections import DirectConnections
from duetime.tasks import TaskRegistry

begun, ended = asyncio.Event(), asyncio.Event()


async def ending() -> None:
    begun.set()
    raise getattr(builtins, sys.argv[2])(3)


async def neighbour() -> None:
    ended.set()


def scheduler(side: str, database: DatabaseUrl) -> AsyncScheduler:
    if side == "stock":
        query = {"host": database.host or "", "port": str(database.port)}
        url = URL.create("postgresql+asyncpg", username=database.user, database=database.database, query=query)
        return AsyncScheduler(SQLAlchemyDataStore(url, schema="stock"))
    registry = TaskRegistry()
    registry.add(ending, name="ending")
    registry.add(neighbour, name="neighbour")
    return build_scheduler(
        Settings(database_url=database.text), DirectConnections(database), PostgresEventBroker(database.text), registry
    )


async def main(side: str, address: str) -> None:
    async with scheduler(side, DatabaseUrl.parse(address)) as running:
        await running.start_in_background()
        await running.add_job("ending" if side == "ours" else ending)
        async with asyncio.timeout(20):
            await begun.wait()  # a process that ends gets no further than this
        await running.add_job("neighbour" if side == "ours" else neighbour)
        async with asyncio.timeout(20):
            await ended.wait()
        print("the neighbour ran")  # noqa: T201 - the test reads it


asyncio.run(main(sys.argv[1], sys.argv[3]))
