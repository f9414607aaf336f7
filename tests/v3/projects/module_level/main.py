"""A heartbeat: all of it happens while the module is imported."""

import atexit

from apscheduler.schedulers.background import BackgroundScheduler
from fastapi import FastAPI

beats = []


def beat(word="tick"):
    beats.append(word)


scheduler = BackgroundScheduler()
scheduler.add_job(beat, "interval", seconds=20)
scheduler.add_job(beat, "cron", hour=0, minute=0, args=["midnight"], timezone="UTC")
scheduler.start()
atexit.register(lambda: scheduler.shutdown())

app = FastAPI()


@app.get("/beats")
def all_beats():
    return beats


@app.post("/beats/{word}")
def another(word: str):
    scheduler.add_job(beat, "interval", hours=1, args=[word], id=word, replace_existing=True)
    return {}
