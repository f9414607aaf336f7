"""What ``duetime migrate code`` rewrites, leaves alone, and lists for a person."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from textwrap import dedent

import pytest
import typer
from typer.testing import CliRunner

from duetime.v3.cli_code import code
from duetime.v3.code import Outcome, migrate_code

command = typer.Typer()
command.command()(code)

HEAD = """
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi import FastAPI

scheduler = AsyncIOScheduler(timezone="UTC")
app = FastAPI()


async def work(*args):
    pass

"""


def written(directory: Path, text: str, name: str = "main.py") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


def rewritten(directory: Path, body: str, head: str = HEAD) -> tuple[str, Outcome]:
    """Return what becomes of a program, which can be read, and what was found."""
    path = written(directory, head + dedent(body))
    outcome = migrate_code(directory, write=True)
    text = path.read_text()
    ast.parse(text)
    return text, outcome


def decisions(outcome: Outcome) -> list[tuple[str, str]]:
    """Return (code, the line of the original that is meant)."""
    lines = {each.file: each.before.decode().splitlines() for each in outcome.changed}
    return [(found.code, lines[found.file][found.line - 1].strip()) for found in outcome.decisions]


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ('work, "cron", day_of_week="0-4", hour=9', 'Cron("0 9 * * mon-fri", timezone="UTC")'),
        ('work, "cron", day_of_week=6, hour=9, minute="*/5"', 'Cron("*/5 9 * * sun", timezone="UTC")'),
        ('work, trigger="cron", hour=9, timezone="Europe/Berlin"', 'Cron("0 9 * * *", timezone="Europe/Berlin")'),
        ('work, "cron", second="*/10"', 'Cron("*/10 * * * * *", timezone="UTC")'),
        ('work, "cron", hour=9, max_instances=2', 'metadata={"duetime.overlap": "allow"}'),
        ('work, "cron", hour=9, coalesce=False', "coalesce=CoalescePolicy.all"),
        ('work, "cron", hour=9, name="Nine"', 'metadata={"name": "Nine"}'),
        ('work, "cron", hour=9, misfire_grace_time=None, next_run_time=None', "paused=True"),
        ('work, "cron", hour=9, jitter=30', "max_jitter=30"),
        ('work, "cron", hour=9, id="nine"', "conflict_policy=ConflictPolicy.exception"),
        ('work, "cron", hour=9, id="nine", replace_existing=True', "conflict_policy=ConflictPolicy.replace"),
        ('work, "interval", minutes=5', "start_time=datetime.now(UTC) + timedelta(minutes=5)"),
        ('work, "date", run_date=datetime.now(UTC) + timedelta(hours=1)', "DateTrigger(run_time=datetime.now(UTC)"),
        # What only the running program knows keeps v3's words, and v3's meaning.
        ('work, "date", run_date=at', 'await add_job(scheduler, work, "date", run_date=at)'),
        ('work, "cron", **fields', 'await add_job(scheduler, work, "cron", **fields)'),
        ('work, "cron", hour=25', 'await add_job(scheduler, work, "cron", hour=25)'),
        ('work, "interval", minutes=5, start_date="2040-01-01 00:00:00"', "await add_job("),
    ],
)
def test_a_job_is_added_with_a_trigger_that_means_the_same(tmp_path: Path, call: str, expected: str) -> None:
    text, outcome = rewritten(
        tmp_path,
        f"""
        from datetime import UTC, datetime, timedelta

        @app.post("/")
        async def add(at: datetime, fields: dict):
            scheduler.add_job({call})
        """,
    )
    assert expected in " ".join(text.split()).replace("( ", "(").replace(", )", ")"), text
    assert outcome.is_complete


def test_calls_whose_jobs_are_used_return_jobs(tmp_path: Path) -> None:
    text, outcome = rewritten(
        tmp_path,
        """
        @app.post("/")
        async def add():
            job = scheduler.add_job(work, "cron", hour=9)
            job.modify(name="nine")
            for each in scheduler.get_jobs():
                each.remove()
            return scheduler.get_job("x").next_run_time if scheduler.get_job("x") else job.id
        """,
    )
    assert 'job = await add_job(scheduler, work, "cron", hour=9)' in text
    assert 'await job.modify(name="nine")' in text
    assert "for each in await get_jobs(scheduler):" in text
    assert "await each.remove()" in text
    assert '(await get_job(scheduler, "x")).next_run_time if await get_job(scheduler, "x")' in text
    assert outcome.is_complete


def test_a_job_is_awaited_however_it_is_come_by_and_nothing_else_of_that_name(tmp_path: Path) -> None:
    text, outcome = rewritten(
        tmp_path,
        """
        from apscheduler.job import Job

        @app.delete("/jobs")
        async def clear(name: str):
            jobs = scheduler.get_jobs()
            for each in jobs:
                each.pause()
            jobs[0].resume()
            [one.remove() for one in scheduler.get_jobs()]
            if found := scheduler.get_job(name):
                found.modify(name="found")
            job: Job | None = scheduler.get_job(name)
            job.remove()
            scheduler.get_job(name).reschedule("cron", hour=9)

        @app.post("/other")
        async def other(things: list):
            job = things.pop()
            job.remove()
            for each in things:
                each.remove()
        """,
    )
    for expected in (
        "        await each.pause()",
        "    await jobs[0].resume()",
        "    [await one.remove() for one in await get_jobs(scheduler)]",
        '        await found.modify(name="found")',
        "await get_job(scheduler, name)\n    await job.remove()",
        '    await (await get_job(scheduler, name)).reschedule("cron", hour=9)',
        "things.pop()\n    job.remove()",
        "in things:\n        each.remove()",
    ):
        assert expected in text, text
    assert outcome.is_complete


def test_a_job_that_cannot_be_awaited_is_listed(tmp_path: Path) -> None:
    _text, outcome = rewritten(
        tmp_path,
        """
        @app.delete("/jobs")
        async def clear():
            return list(each.remove() for each in scheduler.get_jobs())

        @app.get("/later")
        async def later():
            job = scheduler.get_job("x")
            return lambda: job.remove()
        """,
    )
    assert decisions(outcome) == [
        ("not_async", "return list(each.remove() for each in scheduler.get_jobs())"),
        ("not_async", "return lambda: job.remove()"),
    ]


def test_what_is_read_or_passed_on_without_a_call_is_listed(tmp_path: Path) -> None:
    _text, outcome = rewritten(
        tmp_path,
        """
        import atexit
        from fastapi import BackgroundTasks

        @app.get("/later")
        async def later(tasks: BackgroundTasks):
            tasks.add_task(scheduler.add_job, work, "cron", hour=9)
            return {"up": scheduler.running, "state": scheduler.state}

        app.add_event_handler("startup", scheduler.start)
        atexit.register(scheduler.shutdown)
        atexit.register(lambda: scheduler.shutdown())

        if not scheduler.running:
            scheduler.start()
        """,
    )
    assert decisions(outcome) == [
        ("no_equivalent", 'tasks.add_task(scheduler.add_job, work, "cron", hour=9)'),
        ("no_equivalent", 'return {"up": scheduler.running, "state": scheduler.state}'),
        ("no_equivalent", 'app.add_event_handler("startup", scheduler.start)'),
    ]


def test_handlers_that_an_application_is_constructed_with_are_listed(tmp_path: Path) -> None:
    head = HEAD.replace("FastAPI()", "FastAPI(on_startup=[], on_shutdown=[])")
    text, outcome = rewritten(tmp_path, "scheduler.start()", head)
    assert "lifespan=" in text
    assert [code for code, _line in decisions(outcome)] == ["on_event"]


def test_a_scheduler_that_an_object_keeps_is_followed(tmp_path: Path) -> None:
    text, outcome = rewritten(
        tmp_path,
        """
        class Kept:
            def __init__(self, given: AsyncIOScheduler):
                self.given = given

            async def add(self):
                self.given.add_job(work, "cron", day_of_week=0, id="x")

            def add_now(self):
                self.given.pause_job("x")

        class Declared:
            jobs: AsyncIOScheduler

            async def stop(self):
                self.jobs.remove_job("x")
        """,
    )
    assert "await self.given.add_schedule(" in text
    assert 'Cron("0 0 * * mon", timezone="UTC")' in text
    assert 'await remove_job(self.jobs, "x")' in text
    assert decisions(outcome) == [("not_async", 'self.given.pause_job("x")')]


def test_the_comment_behind_the_scheduler_stays(tmp_path: Path) -> None:
    text, _ = rewritten(tmp_path, "", HEAD.replace('timezone="UTC")', 'timezone="UTC")  # the only one'))
    assert "scheduler = duetime.scheduler  # the only one\n" in text


def test_names_of_the_file_are_not_confused_with_new_ones(tmp_path: Path) -> None:
    text, _ = rewritten(
        tmp_path,
        """
        @app.get("/jobs")
        async def get_jobs():
            return [job.id for job in scheduler.get_jobs()]

        @app.post("/jobs")
        async def add_job(at: str):
            return scheduler.add_job(work, "date", run_date=at).id

        class Cron: ...

        @app.post("/cron")
        async def cron():
            scheduler.add_job(work, "cron", hour=9)

        def task(): ...
        """,
    )
    assert "await v3_get_jobs(scheduler)" in text
    assert '(await v3_add_job(scheduler, work, "date", run_date=at)).id' in text
    assert 'await v3_add_job(scheduler, work, "cron", hour=9)' in text
    assert "add_job as v3_add_job" in text
    assert "get_jobs as v3_get_jobs" in text
    assert "@duetime_task\nasync def work" in text


def test_functions_of_jobs_become_tasks_once_in_whichever_file(tmp_path: Path) -> None:
    written(tmp_path, "async def report(): ...\n\nasync def other(): ...\n", "app/jobs.py")
    written(tmp_path, "", "app/__init__.py")
    text, _ = rewritten(
        tmp_path,
        """
        from app import jobs

        @app.post("/")
        async def add():
            scheduler.add_job(jobs.report, "cron", hour=9)
            scheduler.add_job(jobs.report, "cron", hour=10)
        """,
    )
    assert "jobs.report" in text
    assert (tmp_path / "app/jobs.py").read_text().count("@task") == 1
    assert "@task\nasync def report" in (tmp_path / "app/jobs.py").read_text()


def test_decorated_jobs_keep_their_decorator(tmp_path: Path) -> None:
    text, outcome = rewritten(
        tmp_path,
        """
        @scheduler.scheduled_job("cron", day_of_week="1,3", hour=9, id="twice", max_instances=2)
        async def twice(): ...

        @scheduler.scheduled_job("interval", minutes=5)
        async def often(): ...
        """,
    )
    assert 'Cron("0 9 * * tue,thu", timezone="UTC")' in text
    assert '@scheduled_job(scheduler, "interval", minutes=5)' in text
    assert 'id="twice"' in text
    assert "max_instances=2" in text
    assert outcome.is_complete


def test_listeners_and_errors_come_from_compat(tmp_path: Path) -> None:
    text, outcome = rewritten(
        tmp_path,
        """
        from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
        from apscheduler.jobstores.base import ConflictingIdError, JobLookupError

        def hear(event: JobExecutionEvent) -> None: ...

        scheduler.add_listener(hear, EVENT_JOB_ERROR)

        @app.delete("/")
        async def remove(id: str):
            try:
                scheduler.remove_job(id)
            except (JobLookupError, ConflictingIdError):
                pass
        """,
    )
    assert "add_listener(scheduler, hear, EVENT_JOB_ERROR)" in text
    assert "from apscheduler" not in text
    assert outcome.is_complete


# -- what a person must decide ----------------------------------------------------------------------------------------


def test_what_cannot_be_rewritten_is_listed_by_its_line_with_the_reason(tmp_path: Path) -> None:
    _, outcome = rewritten(
        tmp_path,
        """
        @app.post("/sync")
        def sync():
            scheduler.add_job(work, "cron", hour=9)

        @app.post("/")
        async def add(self):
            scheduler.add_job(lambda: None, "cron", hour=9)
            scheduler.add_job(self.method, "cron", hour=10)
            scheduler.add_job("somewhere:else", "cron", hour=11)
            scheduler.pause()

        later = scheduler.add_job(work, "cron", hour=12)
        """,
    )
    assert decisions(outcome) == [
        ("not_async", 'scheduler.add_job(work, "cron", hour=9)'),
        ("not_a_task", 'scheduler.add_job(lambda: None, "cron", hour=9)'),
        ("not_a_task", 'scheduler.add_job(self.method, "cron", hour=10)'),
        ("text_reference", 'scheduler.add_job("somewhere:else", "cron", hour=11)'),
        ("no_equivalent", "scheduler.pause()"),
        ("at_import", 'later = scheduler.add_job(work, "cron", hour=12)'),
    ]
    assert "`def sync`" in outcome.decisions[0].text


def test_what_a_person_has_made_async_is_rewritten_by_the_next_run(tmp_path: Path) -> None:
    text, outcome = rewritten(
        tmp_path,
        """
        @app.post("/sync")
        def sync():
            scheduler.add_job(work, "cron", day_of_week=0, hour=9)
        """,
    )
    assert not outcome.is_complete
    assert not migrate_code(tmp_path).is_complete  # it is still there
    (tmp_path / "main.py").write_text(text.replace("def sync", "async def sync"))
    again = migrate_code(tmp_path, write=True)
    assert again.is_complete
    assert 'Cron("0 9 * * mon", timezone="UTC")' in (tmp_path / "main.py").read_text()


@pytest.mark.parametrize(
    "program",
    [
        """
        class Jobs:
            def __init__(self):
                self.scheduler = AsyncIOScheduler()
        """,
        """
        def create():
            return AsyncIOScheduler()
        """,
        """
        scheduler = None

        async def start():
            global scheduler
            scheduler = AsyncIOScheduler()
        """,
    ],
)
def test_a_scheduler_that_cannot_be_followed_is_listed_and_left_alone(tmp_path: Path, program: str) -> None:
    head = "# of v3\nfrom apscheduler.schedulers.asyncio import AsyncIOScheduler\n"
    path = written(tmp_path, head + dedent(program))
    before = path.read_text()
    outcome = migrate_code(tmp_path, write=True)
    assert [found.code for found in outcome.decisions] == ["import", "scheduler"]
    assert outcome.decisions[1].line > outcome.decisions[0].line == 2  # below the comment
    assert path.read_text() == before


def test_a_scheduler_without_an_application_says_how_it_is_started(tmp_path: Path) -> None:
    _, outcome = rewritten(
        tmp_path,
        "scheduler = AsyncIOScheduler(timezone='UTC')\n",
        head="from apscheduler.schedulers.asyncio import AsyncIOScheduler\n",
    )
    assert [found.code for found in outcome.decisions] == ["no_application"]


def test_a_project_of_apscheduler_4_is_left_alone(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        from apscheduler.triggers.date import DateTrigger
        from apscheduler.triggers.interval import IntervalTrigger
        from fastapi import FastAPI

        from duetime import Duetime, SchedulerDep, task

        duetime = Duetime()
        scheduler = duetime.scheduler
        app = FastAPI(lifespan=duetime.lifespan)

        @task
        async def work(): ...

        @app.post("/")
        async def add(scheduler: SchedulerDep):
            await scheduler.add_job(work)
            await scheduler.add_schedule(work, IntervalTrigger(minutes=5))
            return len(await scheduler.get_jobs())
        """,
    )
    before = path.read_bytes()
    outcome = migrate_code(tmp_path, write=True)
    assert (outcome.changed, outcome.found, path.read_bytes()) == ([], [], before)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_rewritten(tmp_path: Path) -> None:
    written(tmp_path, "from main import scheduler\ndef broken(:\n", "broken.py")
    (tmp_path / "latin.py").write_bytes(b"scheduler = '\xe9'\n")
    _, outcome = rewritten(tmp_path, "")
    assert set(outcome.skipped) == {"broken.py", "latin.py"}
    assert [each.file for each in outcome.changed] == ["main.py"]
    assert not outcome.is_complete


@pytest.mark.parametrize(
    ("encoding", "first", "newline"),
    [
        ("utf-8", "", "\n"),
        ("utf-8", "", "\r\n"),
        ("latin-1", "# -*- coding: latin-1 -*-\n", "\n"),
        ("utf-8-sig", "", "\n"),
    ],
)
def test_a_file_keeps_its_encoding_its_line_ends_and_its_mode(
    tmp_path: Path, encoding: str, first: str, newline: str
) -> None:
    path = tmp_path / "main.py"
    program = f'{first}# caf\xe9{HEAD}\n@app.post("/")\nasync def add():\n    scheduler.add_job(work, "cron", hour=9)\n'
    path.write_bytes(program.replace("\n", newline).encode(encoding))
    path.chmod(0o750)
    migrate_code(tmp_path, write=True)
    content = path.read_bytes()
    text = content.decode(encoding)
    assert "caf\xe9" in text
    assert "add_schedule" in text
    assert content.startswith(b"\xef\xbb\xbf") == (encoding == "utf-8-sig")
    assert text.count("\n") == text.count(newline)
    assert path.stat().st_mode & 0o777 == 0o750
    assert os.listdir(tmp_path) == ["main.py"]  # no temporary file is left


def test_environments_and_hidden_directories_are_not_looked_at(tmp_path: Path) -> None:
    for directory in (".venv/lib", "env", "node_modules/x", "mine"):
        written(tmp_path, HEAD, f"{directory}/module.py")
    written(tmp_path, "", "mine/pyvenv.cfg")
    assert migrate_code(tmp_path).looked_at == 0


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_shows_a_diff_and_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD)
    before = path.read_text()
    shown = CliRunner().invoke(command, [str(tmp_path)])
    assert shown.exit_code == 0
    assert "-scheduler = AsyncIOScheduler" in shown.stdout
    assert "+duetime = Duetime()" in shown.stdout
    assert path.read_text() == before
    assert CliRunner().invoke(command, [str(tmp_path), "--write"]).exit_code == 0
    assert "Duetime()" in path.read_text()


def test_its_exit_status_says_whether_something_is_left_to_decide(tmp_path: Path) -> None:
    written(tmp_path, HEAD + "\n\ndef sync():\n    scheduler.remove_job('x')\n")
    shown = CliRunner().invoke(command, [str(tmp_path)])
    assert shown.exit_code == 1
    assert "main.py:15: scheduler.remove_job() is called in `def sync`" in shown.output
    assert CliRunner().invoke(command, [str(tmp_path / "nothing")]).exit_code == 2
    assert CliRunner().invoke(command, []).exit_code == 2
    (tmp_path / "main.py").write_text("print('nothing of v3')\n")
    assert CliRunner().invoke(command, [str(tmp_path)]).exit_code == 0


def test_it_answers_in_json(tmp_path: Path) -> None:
    written(tmp_path, HEAD + "\n\ndef sync():\n    scheduler.remove_job('x')\n")
    written(tmp_path, "from main import scheduler\ndef broken(:\n", "broken.py")
    shown = CliRunner().invoke(command, [str(tmp_path), "--json"])
    answer = json.loads(shown.stdout)
    assert [each["file"] for each in answer["files"]] == ["main.py"]
    assert [(each["file"], each["line"], each["code"]) for each in answer["decisions"]] == [
        ("main.py", 15, "not_async")
    ]
    assert [each["file"] for each in answer["skipped"]] == ["broken.py"]
    assert answer["written"] is False
