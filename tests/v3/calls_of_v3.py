"""What APScheduler 3.11.3 makes of its calls: writes ``calls.json``, for the tests of ``duetime.v3.compat``.

Run it where that release is, and nothing of Duetime::

    python3.12 -m venv .v3 && .v3/bin/pip install apscheduler==3.11.3 time-machine pytz
    .v3/bin/python tests/v3/calls_of_v3.py

Time stands still at NOW, and the machine is in Berlin; the scheduler is, unless a case says otherwise.
"""

# mypy: ignore-errors

import json
import os
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

os.environ["TZ"] = "Europe/Berlin"
time.tzset()

NOW = datetime(2027, 3, 26, 14, 30, 15, 250000, tzinfo=ZoneInfo("UTC"))
FIRES = 30
OWN = datetime(2040, 6, 1, 8, 20)  # noqa: DTZ001 - of the scheduler's zone

TRIGGERS = {
    "weekdays by number": ["cron", {"day_of_week": "0-4", "hour": 9}],
    "sunday by number": ["cron", {"day_of_week": 6, "hour": 9}],
    "weekdays with a step": ["cron", {"day_of_week": "*/2", "hour": 9}],
    "a weekday and those after it in steps": ["cron", {"day_of_week": "1/2", "hour": 9}],
    "weekdays by name with a step, which is dropped": ["cron", {"day_of_week": "mon-fri/2", "hour": 9}],
    "weekdays in a list": ["cron", {"day_of_week": "0, 2,fri", "hour": "9-11"}],
    "months by name with a step, which is dropped": ["cron", {"month": "jan-jun/2", "day": 1, "hour": 12}],
    "months in steps": ["cron", {"month": "*/3", "day": "last", "hour": 23, "minute": 59}],
    "a field that leaves smaller ones at their lowest": ["cron", {"month": 6}],
    "only the second": ["cron", {"second": "*/20"}],
    "nothing at all": ["cron", {}],
    "the second friday": ["cron", {"day": "2nd fri", "hour": 12}],
    "weeks": ["cron", {"week": "*/2", "day_of_week": "mon", "hour": 8}],
    "a year": ["cron", {"year": 2028, "month": 2, "day": 29, "hour": 12}],
    "cron in another zone": ["cron", {"hour": 7, "timezone": "America/New_York"}],
    "cron with a start": ["cron", {"hour": "*/6", "start_date": "2027-04-01 05:00:00"}],
    "cron with a start of microseconds": ["cron", {"hour": 6, "start_date": "2027-04-01 06:00:00.5"}],
    "cron with an end": ["cron", {"hour": 12, "end_date": "2027-04-02 12:00:00"}],
    "interval": ["interval", {"minutes": 5}],
    "interval of nothing": ["interval", {}],
    "interval of days over the change of the clock": ["interval", {"days": 1}],
    "interval with a start in the past": ["interval", {"hours": 5, "start_date": "2027-01-01 00:00:00"}],
    "interval with a start ahead": ["interval", {"weeks": 1, "start_date": "2027-04-01 08:00:00"}],
    "interval with a start and an offset": ["interval", {"hours": 1, "start_date": "2027-04-01 08:00:00+05:30"}],
    "interval with an end": ["interval", {"hours": 12, "end_date": "2027-03-28 02:30:15.25"}],
    "interval elsewhere": ["interval", {"hours": 6, "start_date": "2027-04-01 08:00:00", "timezone": "Asia/Tokyo"}],
    "date as text": ["date", {"run_date": "2027-04-01 08:00:00"}],
    "date as a day": ["date", {"run_date": {"day": "2027-04-01"}}],
    "date without an offset": ["date", {"run_date": {"moment": "2027-04-01T08:00:00"}}],
    "date with an offset": ["date", {"run_date": {"moment": "2027-04-01T08:00:00-07:00"}}],
    "date as text with Z": ["date", {"run_date": "2027-04-01 08:00:00Z"}],
    "date in another zone": ["date", {"run_date": "2027-04-01 08:00:00", "timezone": "Asia/Tokyo"}],
    "date in a gap of the clock": ["date", {"run_date": "2027-03-28 02:30:00"}],
    "date that the clock shows twice": ["date", {"run_date": "2027-10-31 02:30:00"}],
    "date in the past": ["date", {"run_date": "2027-01-01 08:00:00"}],
    "date of nothing": ["date", {}],
    "no trigger": [None, {}],
    "calendarinterval": ["calendarinterval", {"months": 1, "hour": 8, "start_date": "2027-04-15"}],
    "calendarinterval of the 31st": ["calendarinterval", {"months": 1, "hour": 8, "start_date": "2027-03-31"}],
}  # fmt: skip

CRONTABS = ["0 9 * * 1-5", "*/15 8-18 * * 0", "0 12 1 * *", "30 6 * * sun", "0 12 1,15 */2 0-4/2"]

WRONG = {
    "a weekday of 7": ["cron", {"day_of_week": 7}],
    "a weekday that is none": ["cron", {"day_of_week": "monday"}],
    "a range backwards": ["cron", {"day_of_week": "fri-mon"}],
    "a month of 13": ["cron", {"month": 13}],
    "an argument that is none": ["cron", {"weekday": 1}],
    "a trigger that is none": ["hourly", {}],
    "text that is no date": ["date", {"run_date": "tomorrow"}],
}


def value_of(given):
    """Return an argument from its form in JSON."""
    if isinstance(given, dict):
        return date.fromisoformat(given["day"]) if "day" in given else datetime.fromisoformat(given["moment"])
    return given


def work(*args, **kwargs):
    """Be a job."""


def times(job):
    """Return the job's fire times as v3 goes through them."""
    found, moment = [], job.next_run_time
    while moment is not None and len(found) < FIRES:
        found.append(moment.astimezone(ZoneInfo("UTC")).isoformat())
        moment = job.trigger.get_next_fire_time(moment, moment + timedelta(microseconds=1))
    return found


def raised(call):
    """Return the name of what a call raises."""
    try:
        call()
    except Exception as exc:
        return type(exc).__name__
    return None


def main():
    import time_machine
    from apscheduler import events
    from apscheduler.jobstores.base import ConflictingIdError  # noqa: F401 - v3 is what is here
    from apscheduler.schedulers.background import BackgroundScheduler
    from apscheduler.triggers.cron import CronTrigger
    from apscheduler.triggers.interval import IntervalTrigger

    facts = {"now": NOW.isoformat(), "fires": FIRES}
    with time_machine.travel(NOW, tick=False):
        scheduler = BackgroundScheduler(timezone="Europe/Berlin")
        scheduler.start(paused=True)
        heard = []
        scheduler.add_listener(lambda event: heard.append(event.code))

        def add(name, arguments, **options):
            return scheduler.add_job(work, name, **{key: value_of(each) for key, each in arguments.items()}, **options)

        facts["triggers"] = {
            title: {"trigger": name, "arguments": arguments, "times": times(add(name, arguments))}
            for title, (name, arguments) in TRIGGERS.items()
        }
        facts["crontabs"] = {
            text: times(scheduler.add_job(work, CronTrigger.from_crontab(text, timezone="Europe/Berlin")))
            for text in CRONTABS
        }
        facts["fault"] = {
            "crontab": "0 0 1 * *",
            "times": times(scheduler.add_job(work, CronTrigger.from_crontab("0 0 1 * *", timezone="Europe/Berlin"))),
        }
        facts["wrong"] = {
            title: {"trigger": name, "arguments": arguments, "raised": raised(lambda n=name, a=arguments: add(n, a))}
            for title, (name, arguments) in WRONG.items()
        }
        scheduler.remove_all_jobs()

        job = add("interval", {"minutes": 5}, id="plain")
        calls = facts["calls"] = {
            "defaults": [job.misfire_grace_time, job.coalesce, job.max_instances, job.executor, job.name],
            "a second of one id": raised(lambda: add("interval", {"minutes": 5}, id="plain")),
            "a second that replaces": raised(
                lambda: add("interval", {"minutes": 5}, id="plain", replace_existing=True)
            ),
            "pausing what is not there": raised(lambda: scheduler.pause_job("nothing")),
            "removing what is not there": raised(lambda: scheduler.remove_job("nothing")),
            "getting what is not there": scheduler.get_job("nothing"),
            "changing the id": raised(lambda: job.modify(id="other")),
            "changing what is none": raised(lambda: job.modify(interval=5)),
            "a grace time of nothing": raised(lambda: job.modify(misfire_grace_time=0)),
            "no instances": raised(lambda: job.modify(max_instances=0)),
            "arguments that do not fit": raised(lambda: scheduler.add_job(value_of, "date", args=[1, 2])),
        }
        ahead = "2040-06-01 08:00:00"
        hourly = {"hours": 1, "start_date": ahead}
        job = add("interval", hourly, next_run_time=OWN)
        calls["a first run of its own: interval"] = times(job)[:3]
        job = add("cron", {"minute": 0}, next_run_time=OWN)
        calls["a first run of its own: cron"] = times(job)[:3]
        job = add("date", {"run_date": ahead}, next_run_time=OWN)
        calls["a first run of its own: date"] = times(job)
        days = {"days": 2, "hour": 9, "start_date": "2040-06-01"}
        job = add("calendarinterval", days, next_run_time=OWN)
        calls["a first run of its own: calendarinterval"] = times(job)[:3]
        job = add("interval", hourly, next_run_time=None)
        calls["added paused"] = times(job)
        calls["resumed"] = times(job.resume())[:3]
        job.pause()
        calls["rescheduled while paused"] = times(job.reschedule("cron", hour=6, year=2040))[:3]
        job = add("interval", hourly)
        job.modify(trigger=IntervalTrigger(minutes=10, timezone="Europe/Berlin"))
        calls["another trigger"] = times(job)[:3]
        job.pause()
        calls["a next run while paused"] = times(job.modify(next_run_time=OWN))[:3]
        scheduler.remove_all_jobs()
        add("date", {"run_date": ahead}, id="later")
        add("date", {"run_date": ahead}, id="paused", next_run_time=None)
        add("date", {"run_date": "2040-01-01 08:00:00"}, id="sooner")
        calls["order"] = [job.id for job in scheduler.get_jobs()]

        heard.clear()
        names = {
            value: name for name, value in vars(events).items() if name.startswith("EVENT_") and name != "EVENT_ALL"
        }
        job = add("interval", hourly, id="heard")
        add("interval", hourly, id="heard", replace_existing=True)
        job.modify(name="another")
        job.pause()
        job.resume()
        job.reschedule("interval", hours=2)
        job.remove()
        scheduler.remove_all_jobs()
        calls["events"] = [names[code] for code in heard]
        facts["events"] = {name: value for name, value in vars(events).items() if name.startswith("EVENT_")}
        scheduler.shutdown()
    Path(__file__).with_name("calls.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
