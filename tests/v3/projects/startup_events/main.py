"""Reminders: the scheduler is started and stopped by events of the application."""

import logging
from datetime import datetime, timedelta

from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

logger = logging.getLogger(__name__)

app = FastAPI(title="Reminders")

# Everything is planned in the time of the office.
scheduler = AsyncIOScheduler(timezone="Europe/Berlin")

sent = []


class Reminder(BaseModel):
    id: str
    at: str
    text: str


async def send_digest():
    sent.append("digest")


def clean_up(days):
    sent.append(f"clean up {days}")


async def send_reminder(text: str):
    sent.append(text)


@app.on_event("startup")
async def connect():
    app.state.connected = True


@app.on_event("startup")
async def start_scheduler():
    scheduler.add_job(send_digest, "cron", day_of_week="0-4", hour=9, id="digest", replace_existing=True)
    scheduler.add_job(
        clean_up,
        "interval",
        minutes=30,
        args=[7],
        id="clean-up",
    )
    scheduler.start()
    logger.info("The scheduler has started")


@app.on_event("shutdown")
async def stop_scheduler():
    scheduler.shutdown()


@app.on_event("shutdown")
def disconnect():
    app.state.connected = False


@app.post("/reminders", status_code=201)
async def remind(reminder: Reminder):
    job = scheduler.add_job(
        send_reminder, "date", run_date=reminder.at, args=[reminder.text], id=reminder.id, replace_existing=True
    )
    return {"id": job.id, "at": job.next_run_time}


@app.post("/soon")
async def soon():
    scheduler.add_job(send_reminder, "date", run_date=datetime.now() + timedelta(seconds=1), args=["soon"])
    return {}


@app.delete("/reminders/{reminder_id}", status_code=204)
async def forget(reminder_id: str):
    try:
        scheduler.remove_job(reminder_id)
    except JobLookupError:
        raise HTTPException(404)


@app.get("/reminders")
async def reminders():
    return [{"id": job.id, "at": job.next_run_time} for job in scheduler.get_jobs()]


@app.get("/state")
async def state():
    return {"connected": app.state.connected, "sent": sent}
