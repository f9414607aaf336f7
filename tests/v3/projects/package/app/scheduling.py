from zoneinfo import ZoneInfo

from apscheduler.schedulers.asyncio import AsyncIOScheduler

scheduler = AsyncIOScheduler(
    timezone=ZoneInfo("Asia/Tokyo"),
    job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": 60},
)
