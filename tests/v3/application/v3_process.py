"""A process of APScheduler 3; runs inside any release from 3.6 on. Takes one order, as JSON:

``what``    ``add``: store jobs and end · ``run``: be the scheduler until killed · ``load``: print what rows say and
            when they are due next, as v3 itself reads them
``url``     of the job store
``jobs``    arguments of ``add_job``, for ``add``; times in them are text
``diary``   file that gets one line of JSON for each run, for ``run``
``rows``    ``[id, job_state in base64]``, for ``load``

``run`` is told everything in its argument; the others get the rest on standard input.
"""

import base64
import json
import os
import pickle
import re
import sys
import time
from datetime import datetime

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler

EPOCH = datetime(1970, 1, 1)
ORDER = json.loads(sys.argv[1])
if ORDER["what"] != "run":
    ORDER.update(json.loads(sys.stdin.read()))


def instant(moment):
    """Return seconds since 1970, to the microsecond."""
    delta = moment.replace(tzinfo=None) - moment.utcoffset() - EPOCH
    return (delta.days * 86400 + delta.seconds) + delta.microseconds / 1000000.0


class FarAway(SQLAlchemyJobStore):
    """The real store at the end of a slow line: longer than usual, a job that v3 has begun is not moved on yet."""

    def get_due_jobs(self, now):
        found = SQLAlchemyJobStore.get_due_jobs(self, now)
        time.sleep(0.3 if found else 0)
        return found

    def update_job(self, job):
        time.sleep(0.02)
        SQLAlchemyJobStore.update_job(self, job)


def scheduler(kind):
    store = (FarAway if ORDER["what"] == "run" else SQLAlchemyJobStore)(url=ORDER["url"])
    return kind(jobstores={"default": store}, executors={"default": ThreadPoolExecutor(20)}, timezone="Europe/Berlin")


def add():
    made = scheduler(BackgroundScheduler)
    made.start(paused=True)
    for job in ORDER["jobs"]:
        made.add_job(**job)
    print(json.dumps(len(ORDER["jobs"])))
    sys.stdout.flush()
    os._exit(0)  # shutdown() ends the pause first, and what is due by then would be fired


def run():
    diary = os.open(ORDER["diary"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(event):
        words = {EVENT_JOB_EXECUTED: "ran", EVENT_JOB_ERROR: "failed", EVENT_JOB_MISSED: "missed"}
        if event.code == EVENT_JOB_MAX_INSTANCES:
            lines = [
                {"what": "skipped", "job": event.job_id, "fire": instant(each)} for each in event.scheduled_run_times
            ]
        else:
            lines = [{"what": words[event.code], "job": event.job_id, "fire": instant(event.scheduled_run_time)}]
        for line in lines:
            os.write(diary, json.dumps(line).encode() + b"\n")

    made = scheduler(BlockingScheduler)
    made.add_listener(write, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
    os.write(diary, b'{"what": "up"}\n')
    try:
        made.start()
    except BaseException as exc:
        os.write(diary, json.dumps({"what": "died", "why": repr(exc)}).encode() + b"\n")
        raise


def load():
    answers = []
    for name, state in ORDER["rows"]:
        try:
            read = pickle.loads(base64.b64decode(state))
        except Exception as exc:
            answers.append({"error": repr(exc)})
            continue
        moment = read["next_run_time"]
        rest = {key: repr(value) for key, value in read.items() if key not in ("next_run_time", "trigger")}
        rest["trigger"] = str(read["trigger"])
        rest = {key: re.sub(" at 0x[0-9a-f]+", "", text) for key, text in rest.items()}
        following = read["trigger"].get_next_fire_time(moment, moment) if name.startswith("interval") else None
        answers.append(
            {
                "next": instant(moment),
                "offset": moment.utcoffset().total_seconds(),
                "following": None if following is None else instant(following),
                "rest": rest,
            }
        )
    print(json.dumps(answers))


{"add": add, "run": run, "load": load}[ORDER["what"]]()
