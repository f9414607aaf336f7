"""Reminders for things to do: a schedule for each, made by a request, and a digest every morning."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from apscheduler import ConflictPolicy
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from fastapi import FastAPI, HTTPException
from pydantic import AwareDatetime, BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from duetime import Duetime, Retry, SchedulerDep, scheduler_transaction, task

from .models import Base, Reminder, Task

duetime = Duetime()
engine = create_async_engine("postgresql+asyncpg://", async_creator=duetime.connect)
Session = async_sessionmaker(engine, expire_on_commit=False)


class NewReminder(BaseModel):
    title: str
    at: AwareDatetime


@task(name="send_reminder", timeout=30, retry=Retry(max_attempts=5))
async def send_reminder(reminder_id: int) -> None:
    async with Session.begin() as session:
        reminder = await session.get_one(Reminder, reminder_id, with_for_update=True)
        if reminder.sent_at is None:  # after a crash a job runs again, and must not send again
            print(f"Reminder: {reminder.task.title}")
            reminder.sent_at = datetime.now(UTC)


@task(name="send_digest")
async def send_digest() -> None:
    async with Session() as session:
        count = await session.scalar(select(func.count()).where(Task.done.is_(False)))
        print(f"Good morning! Things to do: {count}")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:  # before Duetime: a job may start as soon as it does
        await connection.run_sync(Base.metadata.create_all)
    async with duetime.lifespan(app):
        morning = CronTrigger(hour=8, timezone="Europe/Berlin")
        await duetime.scheduler.add_schedule(send_digest, morning, id="digest", conflict_policy=ConflictPolicy.replace)
        yield
    await engine.dispose()


app = FastAPI(title="Reminders", lifespan=lifespan)
app.include_router(duetime.router, prefix="/scheduler")


@app.post("/reminders", status_code=201)
async def remind(new: NewReminder, scheduler: SchedulerDep) -> dict[str, Any]:
    async with Session.begin() as session:
        reminder = Reminder(task=Task(title=new.title), at=new.at)
        session.add(reminder)
        await session.flush()  # gives it its id
        async with scheduler_transaction(session):  # the rows and the schedule: all of them or none
            await scheduler.add_schedule(
                send_reminder, DateTrigger(new.at), id=f"reminder-{reminder.id}", args=[reminder.id]
            )
    return {"id": reminder.id}


@app.get("/reminders/{reminder_id}")
async def show(reminder_id: int) -> dict[str, Any]:
    async with Session() as session:
        reminder = await session.get(Reminder, reminder_id)
    if reminder is None:
        raise HTTPException(404)
    return {"title": reminder.task.title, "at": reminder.at, "sent_at": reminder.sent_at}
