from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from apscheduler import ScheduleLookupError
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from duetime.errors import DuetimeError, NotificationFailed, ScheduleNotFound, StoreUnavailable
from duetime.web import SchedulerDep, attach, build_router, install, lifespan, on_duetime_error

from .door import NEW_SCHEDULE, DoorRuntime, client_of, problem_of


def failing_routes() -> APIRouter:
    """Return routes of an application that has not heard of problem documents."""
    router = APIRouter()

    @router.get("/unavailable")
    async def unavailable() -> None:
        raise StoreUnavailable("expected the database to answer within 10 s.")

    @router.get("/lost")
    async def lost() -> None:
        raise ScheduleNotFound("x")

    @router.get("/undelivered")
    async def undelivered() -> None:
        raise NotificationFailed("expected to deliver.")

    @router.get("/number/{number}")
    async def number(number: int) -> int:
        return number

    @router.get("/gone")
    async def gone() -> None:
        raise HTTPException(410, detail="gone for good")

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("swordfish")

    return router


def application(**options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.include_router(failing_routes())
    return app


async def started(app: FastAPI, runtime: DoorRuntime, stack: AsyncExitStack) -> httpx.AsyncClient:
    """Bring an application to where its lifespan runs: middleware is built, Duetime's part is entered."""
    app.middleware_stack = app.build_middleware_stack()
    await stack.enter_async_context(lifespan(runtime)(app))
    return await stack.enter_async_context(client_of(app))


async def test_an_error_that_leaves_a_handler_of_another_application_is_a_problem(
    runtime: DoorRuntime,
) -> None:
    async with AsyncExitStack() as stack:
        client = await started(application(), runtime, stack)
        response = await client.get("/unavailable")
        assert problem_of(response)["code"] == "store_unavailable"
        assert response.status_code == 503
        assert problem_of(await client.get("/lost"))["status"] == 404


async def test_another_application_keeps_its_answers_to_everything_else(runtime: DoorRuntime) -> None:
    async with AsyncExitStack() as stack:
        client = await started(application(), runtime, stack)
        assert (await client.get("/number/x")).json()["detail"][0]["loc"] == ["path", "number"]
        assert (await client.get("/gone")).json() == {"detail": "gone for good"}
        assert (await client.get("/nowhere")).json() == {"detail": "Not Found"}
        assert (await client.post("/gone")).json() == {"detail": "Method Not Allowed"}
        assert (await client.get("/broken")).text == "Internal Server Error"


def teapot(request: Request, exc: Any) -> Response:
    return JSONResponse({"own": type(exc).__name__}, 418)


async def async_teapot(request: Request, exc: Any) -> Response:
    return teapot(request, exc)


@pytest.mark.parametrize("handler", [teapot, async_teapot])
@pytest.mark.parametrize(
    ("handled", "path"),
    [
        (DuetimeError, "/unavailable"),
        (StoreUnavailable, "/unavailable"),
        (ConnectionError, "/unavailable"),
        (ScheduleLookupError, "/lost"),
    ],
)
async def test_an_applications_own_handler_of_our_errors_wins(
    runtime: DoorRuntime,
    handled: type[Exception],
    path: str,
    handler: Callable[[Request, Exception], Response | Awaitable[Response]],
) -> None:
    async with AsyncExitStack() as stack:
        client = await started(application(exception_handlers={handled: handler}), runtime, stack)
        assert (await client.get(path)).status_code == 418


async def test_an_applications_handler_of_all_exceptions_does_not_hide_what_ours_says(
    runtime: DoorRuntime,
) -> None:
    async with AsyncExitStack() as stack:
        client = await started(application(exception_handlers={Exception: teapot}), runtime, stack)
        assert problem_of(await client.get("/unavailable"))["code"] == "store_unavailable"
        assert (await client.get("/broken")).status_code == 418


async def test_errors_in_mounted_applications_are_problems_too(runtime: DoorRuntime) -> None:
    inner, middle, outer = application(), application(), FastAPI()
    middle.mount("/inner", inner)
    outer.mount("/middle", middle)
    middle.middleware_stack = middle.build_middleware_stack()  # one mounted application is built, the other not
    async with AsyncExitStack() as stack:
        client = await started(outer, runtime, stack)
        assert problem_of(await client.get("/middle/unavailable"))["code"] == "store_unavailable"
        assert problem_of(await client.get("/middle/inner/unavailable"))["code"] == "store_unavailable"


async def test_attaching_before_the_middleware_is_built_and_twice_does_the_same(runtime: DoorRuntime) -> None:
    app = application()
    attach(app)
    attach(app)
    async with client_of(app) as client:
        assert problem_of(await client.get("/unavailable"))["code"] == "store_unavailable"


async def test_ordinary_middleware_does_not_stand_in_the_way(runtime: DoorRuntime) -> None:
    app = application()

    @app.middleware("http")
    async def hello(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["x-hello"] = "hello"
        return response

    async with AsyncExitStack() as stack:
        response = await (await started(app, runtime, stack)).get("/unavailable")
        assert problem_of(response)["code"] == "store_unavailable"
        assert response.headers["x-hello"] == "hello"


def opaque_middleware(app: ASGIApp) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return call


async def test_middleware_that_hides_the_application_is_warned_about_with_the_way_out(
    runtime: DoorRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    app = application()
    app.add_middleware(opaque_middleware)
    async with AsyncExitStack() as stack:
        await started(app, runtime, stack)
    assert "add_exception_handler(DuetimeError, duetime.web.on_duetime_error)" in caplog.text

    app = application(exception_handlers={DuetimeError: on_duetime_error})
    app.add_middleware(opaque_middleware)
    caplog.clear()
    async with AsyncExitStack() as stack:
        client = await started(app, runtime, stack)
        assert problem_of(await client.get("/unavailable"))["code"] == "store_unavailable"
    assert caplog.text == ""


async def test_an_error_that_is_nobodys_request_is_logged(
    runtime: DoorRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        client = await started(application(), runtime, stack)
        with caplog.at_level(logging.WARNING):
            assert problem_of(await client.get("/unavailable"))["status"] == 503
        assert caplog.text == ""
        assert problem_of(await client.get("/undelivered"))["status"] == 500
        assert "Traceback" in caplog.text


async def test_our_routes_in_another_application_answer_problems_and_the_application_its_own(
    runtime: DoorRuntime,
) -> None:
    app = application()
    app.include_router(build_router(runtime), prefix="/scheduler")
    async with AsyncExitStack() as stack:
        client = await started(app, runtime, stack)
        refused = await client.post("/scheduler/schedules", json={**NEW_SCHEDULE, "task": 5})
        assert problem_of(refused)["code"] == "invalid_request"
        runtime.answers.error = RuntimeError("swordfish")
        assert problem_of(await client.get("/scheduler/schedules"))["code"] == "internal_error"
        assert problem_of(await client.put("/scheduler/schedules"))["code"] == "method_not_allowed"
        assert (await client.get("/number/x")).json()["detail"][0]["loc"] == ["path", "number"]


async def test_what_an_applications_own_dependency_raises_is_answered_by_the_application(
    runtime: DoorRuntime,
) -> None:
    class NotLoggedInError(Exception):
        pass

    async def user() -> None:
        raise NotLoggedInError

    async def member() -> None:
        raise HTTPException(403, detail="members only")

    app = FastAPI(exception_handlers={NotLoggedInError: async_teapot})
    app.include_router(build_router(runtime), prefix="/a", dependencies=[Depends(user)])
    app.include_router(build_router(runtime), prefix="/b", dependencies=[Depends(member)])
    async with AsyncExitStack() as stack:
        client = await started(app, runtime, stack)
        assert (await client.get("/a/schedules")).json() == {"own": "NotLoggedInError"}
        assert (await client.get("/b/schedules")).json() == {"detail": "members only"}


async def test_an_application_that_is_ours_answers_nothing_but_problems() -> None:
    app = application()
    install(app)

    @app.get("/teapot")
    async def pot() -> None:
        raise HTTPException(418, headers={"x-tea": "green"})

    async with client_of(app) as client:
        for path, status, code in [
            ("/unavailable", 503, "store_unavailable"),
            ("/number/x", 422, "invalid_request"),
            ("/gone", 410, "http_410"),
            ("/nowhere", 404, "not_found"),
            ("/broken", 500, "internal_error"),
            ("/teapot", 418, "http_418"),
        ]:
            problem = problem_of(await client.get(path))
            assert (problem["status"], problem["code"]) == (status, code)
        wrong = await client.delete("/gone")
        assert problem_of(wrong)["code"] == "method_not_allowed"
        assert wrong.headers["allow"] == "GET"
        assert (await client.get("/teapot")).headers["x-tea"] == "green"
        assert "swordfish" not in (await client.get("/broken")).text


async def test_a_scheduler_call_that_fails_in_a_handler_is_a_problem(runtime: DoorRuntime) -> None:
    app = FastAPI()

    @app.post("/reminders")
    async def remind(scheduler: SchedulerDep) -> None:
        raise StoreUnavailable(f"expected the database of {type(scheduler).__name__} to answer.")

    async with AsyncExitStack() as stack:
        client = await started(app, runtime, stack)
        problem = problem_of(await client.post("/reminders"))
        assert problem["detail"] == "expected the database of AsyncScheduler to answer."
