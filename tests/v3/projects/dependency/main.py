"""Watches: handlers get the scheduler as a dependency."""

from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi import Depends, FastAPI

scheduler = AsyncIOScheduler(timezone="UTC")


def get_scheduler() -> AsyncIOScheduler:
    return scheduler


Scheduler = Annotated[AsyncIOScheduler, Depends(get_scheduler)]


@asynccontextmanager
async def lifespan(app):
    scheduler.start()
    yield
    scheduler.shutdown()


app = FastAPI(lifespan=lifespan)


async def watch(url: str):
    pass


@app.post("/watches")
async def add(url: str, scheduler: Annotated[AsyncIOScheduler, Depends(get_scheduler)]):
    job = scheduler.add_job(
        watch, "interval", minutes=15, args=[url], max_instances=3, coalesce=False, misfire_grace_time=None,
        next_run_time=datetime(2040, 1, 1, 12),
    )
    return {"id": job.id, "next": job.next_run_time}


@app.post("/weekly")
async def weekly(url: str, scheduler: AsyncIOScheduler = Depends(get_scheduler)):
    scheduler.add_job(
        watch, "cron", week="*/2", day_of_week="sun", hour=5, args=[url], id="weekly", jitter=120, misfire_grace_time=300
    )
    return {}


@app.delete("/watches")
async def remove_all(scheduler: AsyncIOScheduler = Depends(get_scheduler)):
    scheduler.remove_all_jobs()
    return {"left": len(scheduler.get_jobs())}
