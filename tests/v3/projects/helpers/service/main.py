from fastapi import FastAPI

from service.scheduler import start_scheduler, stop_scheduler

app = FastAPI()


@app.on_event("startup")
def startup():
    start_scheduler()


@app.on_event("shutdown")
def shutdown():
    stop_scheduler()
