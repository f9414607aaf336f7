"""A user's application: its own lifespan with Duetime's inside, its own tables, schedules in its own transactions."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
from apscheduler.triggers.date import DateTrigger
from fastapi import Depends, FastAPI, HTTPException
from pydantic import AwareDatetime, BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from duetime import Duetime, Overlap, Retry, SchedulerDep, scheduler_transaction, task


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "tasks"  # the name of a table of Duetime's, and of APScheduler's
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class NewOrder(BaseModel):
    item: str
    url: str
    at: AwareDatetime
    then: str = "commit"


class Reminder(BaseModel):
    to: str
    text: str
    at: AwareDatetime


@task(timeout=30, retry=Retry(max_attempts=5), overlap=Overlap.skip)
async def send(to: str, text: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.post(to, content=text)


def plain(to: str, text: str) -> None:
    """Not registered by the decorator; a function of a module of its own is found again all the same."""
    httpx.post(to, content=text, trust_env=False)


duetime = Duetime()
engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": os.environ["APPLICATION_DATABASE"]})
sessions = async_sessionmaker(engine)
opened: list[str] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    opened.append("the application's own")
    async with duetime.lifespan(app):
        yield
    await engine.dispose()


async def transaction() -> AsyncIterator[AsyncSession]:
    async with sessions.begin() as session:
        yield session


app = FastAPI(lifespan=lifespan)
app.include_router(duetime.router, prefix="/scheduler")


@app.get("/opened")
async def what_is_opened() -> list[str]:
    return opened


@app.post("/reminders", status_code=201)
async def remind(body: Reminder, scheduler: SchedulerDep) -> dict[str, str]:
    schedule = await scheduler.add_schedule(send, DateTrigger(body.at), kwargs={"to": body.to, "text": body.text})
    return {"id": schedule}


@app.post("/plain", status_code=201)
async def remind_plainly(body: Reminder, scheduler: SchedulerDep) -> dict[str, str]:
    return {"id": await scheduler.add_schedule(plain, DateTrigger(body.at), args=[body.to, body.text])}


@app.post("/orders", status_code=201)
async def order(
    body: NewOrder, scheduler: SchedulerDep, session: Annotated[AsyncSession, Depends(transaction)]
) -> dict[str, str]:
    session.add(Order(item=body.item))
    async with scheduler_transaction(session):
        schedule = await scheduler.add_schedule(
            send, DateTrigger(body.at), id=body.item, kwargs={"to": body.url, "text": body.item}
        )
    if body.then == "refuse":
        raise HTTPException(409, "out of stock")
    if body.then == "wait":
        await httpx.AsyncClient(trust_env=False, timeout=None).post(body.url + "/committing")  # noqa: S113
    return {"id": schedule}
