from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from duetime.web import build_router, install
from duetime.web.route import sent_path

from .door import NEW_SCHEDULE, DoorRuntime, client_of, problem_of, served


def scope(path: str, raw_path: bytes | None, root_path: str = "") -> dict[str, Any]:
    return {"type": "http", "path": path, "raw_path": raw_path, "root_path": root_path}


@pytest.mark.parametrize(
    ("path", "raw_path", "expected"),
    [
        ("/s/a", b"/s/a", None),
        ("/s/a/b", b"/s/a%2Fb", "/s/a%2Fb"),
        ("/s/a/b", b"/s/a%2fb", "/s/a%2Fb"),
        ("/s/a%2Fb", b"/s/a%252Fb", "/s/a%252Fb"),
        ("/s/ä", b"/s/%C3%A4", "/s/ä"),
        ("/s/\ufffd", b"/s/%FF", "/s/\ufffd"),
        ("/s/100%", b"/s/100%25", "/s/100%25"),
        ("/s/a/b", b"/s/a%2Fb?x=%2F", "/s/a%2Fb"),
    ],
)
def test_an_encoded_slash_stays_apart_from_the_slashes_between_segments(
    path: str, raw_path: bytes, expected: str | None
) -> None:
    assert sent_path(scope(path, raw_path)) == expected


@pytest.mark.parametrize(
    ("path", "raw_path", "root_path", "expected"),
    [
        ("/in/s/a/b", b"/in/s/a%2Fb", "/in", "/in/s/a%2Fb"),
        ("/100%/s/a/b", b"/100%25/s/a%2Fb", "/100%", "/100%/s/a%2Fb"),
        ("/100%/s/a%", b"", "/100%", "/100%/s/a%25"),
        ("/s/a/b", b"/s/a%2Fb", "/taken-away", "/s/a%2Fb"),
        ("/i/n/s/a", b"/i%2Fn/s/a", "/i/n", "/i/n/s/a"),
    ],
)
def test_the_root_path_is_left_as_starlette_compares_it(
    path: str, raw_path: bytes, root_path: str, expected: str
) -> None:
    assert sent_path(scope(path, raw_path, root_path)) == expected


@pytest.mark.parametrize("raw_path", [None, b"", b"/old/a%2Fb"])
def test_a_server_or_middleware_that_does_not_tell_the_raw_path_leaves_the_decoded_one(
    raw_path: bytes | None,
) -> None:
    assert sent_path(scope("/s/a/b%", raw_path)) == "/s/a/b%25"
    assert sent_path(scope("/s/a", None)) is None


async def test_ids_are_found_below_a_mount_and_a_prefix(runtime: DoorRuntime) -> None:
    inner, outer = FastAPI(), FastAPI()
    inner.include_router(build_router(runtime), prefix="/scheduler")
    outer.mount("/my tools", inner)
    async with client_of(outer) as client:
        created = await client.post("/my%20tools/scheduler/schedules", json={**NEW_SCHEDULE, "id": "a/b ä"})
        assert created.headers["location"] == "/my%20tools/scheduler/schedules/a%2Fb%20%C3%A4"
        assert (await client.get(created.headers["location"])).json()["id"] == "a/b ä"


async def test_the_address_names_the_prefix_that_a_proxy_has_taken_away(runtime: DoorRuntime) -> None:
    app = served(runtime)
    app.root_path = "/behind/proxy"
    async with client_of(app) as client:
        for sent in (
            "/api/schedules",
            "/behind/proxy/api/schedules",
        ):  # taken away, and left to us to take away
            created = await client.post(sent, json={**NEW_SCHEDULE, "id": "a/b"})
            assert created.headers["location"] == "/behind/proxy/api/schedules/a%2Fb"
            assert (await client.get(f"{sent}/a%2Fb")).json()["id"] == "a/b"


async def test_a_trailing_slash_is_redirected_as_fastapi_does(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/schedules/")
    assert response.status_code == 307
    assert response.headers["location"] == "http://door.test/api/schedules"


class WithoutRawPath:
    """A server that does not tell the path as it was sent; ASGI allows that."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({key: value for key, value in scope.items() if key != "raw_path"}, receive, send)


async def test_without_the_raw_path_ids_without_a_slash_are_still_found(runtime: DoorRuntime) -> None:
    app = FastAPI()
    install(app)
    app.add_middleware(WithoutRawPath)
    app.include_router(build_router(runtime), prefix="/api")
    async with client_of(app) as client:
        assert (await client.get("/api/schedules/100%25 ä")).json()["id"] == "100% ä"
        assert problem_of(await client.get("/api/schedules/a%2Fb"))["code"] == "not_found"


async def test_two_runtimes_in_one_application_keep_apart() -> None:
    one, two = DoorRuntime(), DoorRuntime(api_token="a-long-enough-token")
    app = FastAPI()
    app.include_router(build_router(one), prefix="/one")
    app.include_router(build_router(two), prefix="/two")
    async with client_of(app) as client:
        assert (await client.get("/one/schedules/s")).status_code == 200
        assert (await client.get("/two/schedules/s")).status_code == 401
    assert (len(one.answers.calls), len(two.answers.calls)) == (1, 0)
