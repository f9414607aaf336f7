"""Reports: the scheduler is made inside of the application's lifespan, and found through its state."""

from contextlib import asynccontextmanager

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from fastapi import FastAPI, Request


class Pool:
    def __init__(self):
        self.is_open = True

    async def close(self):
        self.is_open = False


async def build_report(kind: str = "daily"):
    pass


async def poll():
    pass


@asynccontextmanager
async def lifespan(app: FastAPI):
    pool = Pool()
    app.state.pool = pool
    scheduler = AsyncIOScheduler(timezone="America/New_York")
    scheduler.add_job(build_report, CronTrigger.from_crontab("30 6 * * 1-5", timezone="America/New_York"), id="daily")
    scheduler.add_job(build_report, CronTrigger(day="last", hour=18, timezone="America/New_York"), args=["monthly"])
    scheduler.add_job(poll, IntervalTrigger(minutes=10), id="poll")
    scheduler.start()
    app.state.scheduler = scheduler
    yield
    # The reports need the pool to the end.
    scheduler.shutdown(wait=False)
    await pool.close()


app = FastAPI(lifespan=lifespan)


@app.post("/reports/{name}")
async def plan(name: str, hour: int, request: Request):
    request.app.state.scheduler.add_job(
        build_report, "cron", day_of_week="6", hour=hour, kwargs={"kind": name}, id=name, name=f"Report {name}"
    )
    return {"jobs": len(request.app.state.scheduler.get_jobs())}


@app.get("/reports")
async def plans(request: Request):
    jobs = request.app.state.scheduler.get_jobs()
    return {job.id: job.name for job in jobs}
