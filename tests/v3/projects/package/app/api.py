from apscheduler.job import Job
from apscheduler.jobstores.base import ConflictingIdError
from fastapi import APIRouter, HTTPException

from app.jobs import send_invoice
from app.scheduling import scheduler

router = APIRouter(prefix="/invoices")


def shown(job: Job) -> dict:
    return {"id": job.id, "next": job.next_run_time}


@router.post("/{customer}")
async def bill(customer: int, day: int = 1):
    try:
        scheduler.add_job(send_invoice, "cron", day=day, hour=8, args=(customer,), id=f"invoice-{customer}")
    except ConflictingIdError:
        raise HTTPException(409)
    return shown(scheduler.get_job(f"invoice-{customer}"))


@router.post("/{customer}/pause")
async def pause(customer: int):
    return shown(scheduler.pause_job(f"invoice-{customer}"))


@router.post("/{customer}/resume")
async def resume(customer: int):
    job = scheduler.resume_job(f"invoice-{customer}")
    return shown(job)


@router.post("/{customer}/move")
async def move(customer: int, day: int):
    return shown(scheduler.reschedule_job(f"invoice-{customer}", trigger="cron", day=day, hour=8))


@router.post("/{customer}/copy")
async def copy(customer: int):
    job = scheduler.get_job(f"invoice-{customer}")
    job.modify(kwargs={"copy": True})
    return {}
