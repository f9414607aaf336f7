"""The smallest user's application: Duetime's lifespan is all of its lifespan."""

from apscheduler.triggers.date import DateTrigger
from fastapi import FastAPI
from pydantic import AwareDatetime, BaseModel

from duetime import Duetime, SchedulerDep, task

duetime = Duetime()
app = FastAPI(lifespan=duetime.lifespan)
done: list[str] = []


class Reminder(BaseModel):
    text: str
    at: AwareDatetime


@task
async def remember(text: str) -> None:
    done.append(text)


@app.get("/done")
async def what_is_done() -> list[str]:
    return done


@app.post("/reminders", status_code=201)
async def remind(body: Reminder, scheduler: SchedulerDep) -> dict[str, str]:
    return {"id": await scheduler.add_schedule(remember, DateTrigger(body.at), kwargs={"text": body.text})}
