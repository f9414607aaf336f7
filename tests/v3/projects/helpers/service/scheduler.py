import logging

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from .jobs import sync_orders

logger = logging.getLogger(__name__)

OPTIONS = {"hour": "*/4", "timezone": "UTC"}

jobstores = {"default": SQLAlchemyJobStore(url="sqlite:///jobs.sqlite")}
executors = {"default": ThreadPoolExecutor(20), "heavy": ProcessPoolExecutor(2)}

scheduler = AsyncIOScheduler(
    jobstores=jobstores,
    executors=executors,
    timezone="UTC",
)


def on_end(event):
    if event.exception:
        logger.error("%s failed", event.job_id)


def add_jobs():
    scheduler.add_job(
        "service.jobs:clean_up",
        trigger="cron",
        hour=3,
        kwargs={"older_than": 90},
        id="clean-up",
        replace_existing=True,
    )
    scheduler.add_job(sync_orders, "cron", id="orders", replace_existing=True, **OPTIONS)


def start_scheduler():
    scheduler.add_listener(on_end, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    add_jobs()
    if not scheduler.running:
        scheduler.start()


def stop_scheduler():
    if scheduler.running:
        scheduler.shutdown()
