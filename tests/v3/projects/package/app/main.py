from contextlib import asynccontextmanager

from fastapi import FastAPI

from . import jobs
from .api import router
from .scheduling import scheduler

opened = []


@asynccontextmanager
async def lifespan(app: FastAPI):
    opened.append("mail")
    scheduler.start()
    try:
        yield
    finally:
        scheduler.shutdown()
        opened.remove("mail")


app = FastAPI(lifespan=lifespan)
app.include_router(router)
