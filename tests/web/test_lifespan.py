from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
from apscheduler import AsyncScheduler
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from duetime.errors import DuetimeError, NotStarted, ScheduleNotFound, StoreUnavailable, UnreadableValue
from duetime.web import SchedulerDep, ServiceDep, get_scheduler, lifespan
from duetime.web.deps import find_runtime

from .door import DoorRuntime, client_of, started, websocket_messages


def application(
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any] | None]] | None,
) -> FastAPI:
    app = FastAPI(lifespan=lifespan)  # type: ignore[arg-type]  # FastAPI tells the two kinds of lifespans apart

    @app.get("/scheduler")
    async def scheduler(scheduler: SchedulerDep, request: Request) -> list[int]:
        return [id(scheduler), id(getattr(request.state, "duetime", None))]

    @app.get("/schedules/{schedule_id}")
    async def schedule(schedule_id: str, service: ServiceDep) -> str:
        return (await service.get(schedule_id)).id

    @app.websocket("/ws")
    async def websocket(websocket: WebSocket, scheduler: SchedulerDep, service: ServiceDep) -> None:
        await websocket.accept()
        await websocket.send_json(id(scheduler))
        await service.get("s")
        await websocket.close()

    return app


async def test_a_handler_gets_the_running_scheduler_and_the_verbs(runtime: DoorRuntime) -> None:
    async with started(application(lifespan(runtime))) as app, client_of(app) as client:
        assert runtime.is_running
        assert (await client.get("/scheduler")).json() == [id(runtime.scheduler), id(runtime)]
        assert (await client.get("/schedules/s")).json() == "s"
    assert not runtime.is_running


async def test_a_websocket_gets_the_running_scheduler_too(runtime: DoorRuntime) -> None:
    async with started(application(lifespan(runtime))) as app:
        accept, message, _ = await websocket_messages(app, "/ws")
    assert accept["type"] == "websocket.accept"
    assert message["text"] == str(id(runtime.scheduler))


@pytest.mark.parametrize(
    ("error", "close_code"),
    [(StoreUnavailable("gone"), 1013), (ScheduleNotFound("s"), 1008), (UnreadableValue("?"), 1011)],
)
async def test_an_error_that_leaves_a_websocket_closes_it_with_its_code(
    runtime: DoorRuntime, error: DuetimeError, close_code: int
) -> None:
    runtime.answers.error = error
    async with started(application(lifespan(runtime))) as app:
        *_, close = await websocket_messages(app, "/ws")
    assert close == {"type": "websocket.close", "code": close_code, "reason": error.code}


async def test_an_error_after_the_other_side_has_gone_is_nobodys(runtime: DoorRuntime) -> None:
    app = application(lifespan(runtime))

    @app.websocket("/gone")
    async def gone(websocket: WebSocket) -> None:
        await websocket.accept()
        with pytest.raises(WebSocketDisconnect):
            await websocket.receive_text()
        raise StoreUnavailable("gone")

    async with started(app) as serve:
        messages = await websocket_messages(serve, "/gone", {"type": "websocket.disconnect", "code": 1001})
    assert [message["type"] for message in messages] == ["websocket.accept"]


@pytest.mark.parametrize("hand_on", [True, False])
async def test_it_is_a_part_of_an_applications_own_lifespan_whether_its_state_is_handed_on_or_not(
    runtime: DoorRuntime, hand_on: bool
) -> None:
    events: list[object] = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
        events.append("own begins")
        async with lifespan(runtime)(app) as state:
            events.append(runtime.is_running)
            yield {**state, "own": 1} if hand_on else None
        events.append(runtime.is_running)

    async with started(application(own)) as app, client_of(app) as client:
        assert (await client.get("/scheduler")).json()[0] == id(runtime.scheduler)
    assert events == ["own begins", True, False]


async def test_applications_that_are_mounted_find_it(runtime: DoorRuntime) -> None:
    outer, inner = FastAPI(lifespan=lifespan(runtime)), application(None)
    outer.mount("/inner", inner)
    async with started(outer) as app, client_of(app) as client:
        assert (await client.get("/inner/scheduler")).json()[0] == id(runtime.scheduler)


async def test_applications_that_are_mounted_find_it_without_the_lifespans_state(runtime: DoorRuntime) -> None:
    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(runtime)(app):
            yield

    outer, inner = FastAPI(lifespan=own), application(None)
    outer.mount("/inner", inner)
    async with started(outer) as app, client_of(app) as client:
        assert (await client.get("/inner/scheduler")).json()[0] == id(runtime.scheduler)


async def test_applications_whose_mount_is_hidden_find_it_by_the_lifespans_state(
    runtime: DoorRuntime,
) -> None:
    outer, inner = FastAPI(lifespan=lifespan(runtime)), application(None)

    async def hidden(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, receive, send)

    outer.mount("/inner", hidden)
    async with started(outer) as app, client_of(app) as client:
        assert (await client.get("/inner/scheduler")).json() == [id(runtime.scheduler), id(runtime)]


async def test_without_a_lifespan_the_error_says_how_to_make_one() -> None:
    app = application(None)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://door.test") as client:
        with pytest.raises(NotStarted, match=r"FastAPI\(lifespan=duetime.lifespan\)"):
            await client.get("/scheduler")


async def test_after_the_lifespan_nothing_is_found_any_more(runtime: DoorRuntime) -> None:
    app = application(None)
    connection = HTTPConnection({"type": "http", "app": app})
    async with lifespan(runtime)(app):
        assert find_runtime(connection) is runtime
    with pytest.raises(NotStarted):
        find_runtime(connection)


async def test_a_second_lifespan_that_has_begun_is_not_taken_away_by_the_end_of_the_first(
    runtime: DoorRuntime,
) -> None:
    app, other = application(None), DoorRuntime()
    connection = HTTPConnection({"type": "http", "app": app})
    first, second = lifespan(runtime)(app), lifespan(other)(app)
    await first.__aenter__()
    async with second:
        await first.__aexit__(None, None, None)
        assert find_runtime(connection) is other


async def test_a_failure_inside_still_ends_the_runtime(runtime: DoorRuntime) -> None:
    app = application(None)
    with pytest.raises(RuntimeError, match="own"):
        async with lifespan(runtime)(app):
            raise RuntimeError("own")
    assert not runtime.is_running
    with pytest.raises(NotStarted):
        find_runtime(HTTPConnection({"type": "http", "app": app}))


async def test_a_test_of_an_application_can_put_another_scheduler_in_its_place() -> None:
    app, substitute = application(None), AsyncScheduler()
    app.dependency_overrides[get_scheduler] = lambda: substitute
    async with client_of(app) as client:
        assert (await client.get("/scheduler")).json()[0] == id(substitute)
