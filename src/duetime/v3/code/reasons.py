"""What a person is told of what was not rewritten."""

from __future__ import annotations

ON_EVENT = (
    "@app.on_event, on_startup and on_shutdown are not called in an application that has a lifespan. Do in the "
    "lifespan what they do."
)

NOT_SEEN = (
    "the scheduler is configured by something that is not seen here. Say its time zone and job_defaults with "
    "duetime.v3.compat.configure(), and its database with DATABASE_URL."
)

LOCAL_ZONE = (
    "v3 took the time zone of the machine, and its jobs go on doing so. Name one: configure(scheduler, timezone=…)."
)

NESTED = "a job of a nested function is not found again after a restart. Move it to the top of a module."

STARS = "this job is added while the module is imported. Add it in the lifespan."


def not_async(method: str, function: str | None) -> str:
    """Say that a call cannot be awaited where it is."""
    where = "something that is not async" if function is None else f"`def {function}`"
    return (
        f"{method}() is called in {where}, where it cannot be awaited. Make that an `async def`, if nothing "
        f"in it blocks, and run this again; or call it from one."
    )


def at_import(method: str, duetime: str) -> str:
    """Say that a call cannot be awaited while a module is imported."""
    return (
        f"scheduler.{method}() is called while the module is imported, where it cannot be awaited. Move it into the "
        f"lifespan: inside `async with {duetime}.lifespan(app):`."
    )


def no_equivalent(method: str) -> str:
    """Say that a method is not there any more."""
    return f"scheduler.{method}() has no equivalent; docs/migrating-code-from-v3.md says what there is instead."


def passed_on(name: str) -> str:
    """Say that something of v3's scheduler is used without being called."""
    return (
        f"scheduler.{name} is read or passed on here. APScheduler 4 has no such thing, or another one of that name: "
        f"pass an `async def` that awaits what duetime.v3.compat has for it; the lifespan starts and stops."
    )


def started_paused(argument: str) -> str:
    """Say that a scheduler does not start paused."""
    return f"scheduler.start({argument}): a scheduler does not start paused. Pause the schedules instead."


def text_reference(text: str) -> str:
    """Say that a text names nothing that is found."""
    return (
        f"{text} names a function that is not found here. A text has to be the name of a task: decorate the function "
        f"with @task, and import its module."
    )


def not_imported(module: str) -> str:
    """Say that nothing imports the module of a task."""
    return f"nothing here imports {module}, so its task is not registered. Import it where the application is made."


def not_a_task(what: str) -> str:
    """Say that a function is not found again after a restart."""
    return (
        f"{what} is no function at the top of a module of this project, so a job of it is not found again after a "
        f"restart. Make it one, with @task, and pass what it needs as arguments."
    )


def job_stores(text: str) -> str:
    """Say what becomes of job stores."""
    return (
        f"jobs were stored in {text}. There is one store here, PostgreSQL (DATABASE_URL): `duetime migrate v3 plan` "
        f"shows what becomes of the rows."
    )


def executors(text: str) -> str:
    """Say what becomes of executors."""
    return (
        f"executors were {text}. A plain function runs in a thread by itself (40 at most); what is left of them is in "
        f"configure(executors=…). DUETIME_MAX_CONCURRENT_JOBS limits a node."
    )


def option(name: str) -> str:
    """Say that an argument of the scheduler is not there any more."""
    return f"the scheduler's argument {name} has no equivalent."


def lifespan(duetime: str) -> str:
    """Say that an application's lifespan is somewhere else."""
    return (
        f"the application's lifespan is not a function of this project. Enter `async with {duetime}.lifespan(app):` "
        f"in it."
    )


def odd_scheduler(text: str) -> str:
    """Say that a scheduler is made where this cannot be followed."""
    return (
        f"{text[:60]} is made where this cannot be followed: in a class, in a plain function, for a global name, or as "
        f"a second one. Make one `duetime = Duetime()` at the top of a module, and use duetime.scheduler."
    )


def no_application(duetime: str, *, has_several: bool) -> str:
    """Say that nothing starts the scheduler."""
    what = "several FastAPI applications" if has_several else "no FastAPI application"
    return (
        f"there is {what} here, so nothing starts the scheduler: FastAPI(lifespan={duetime}.lifespan), or "
        f"`async with {duetime}:` without an application."
    )


def remaining_import(name: str) -> str:
    """Say that a name of v3 is still used."""
    return f"{name} of APScheduler 3 is still used here, and APScheduler 4 has no such thing."
