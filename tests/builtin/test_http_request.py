"""``http_request`` against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version

import pytest
from apscheduler import Job, current_job
from pydantic import TypeAdapter

from duetime import builtin
from duetime.builtin.http import MAX_READ_BYTES, http_request
from duetime.errors import AddressRefused, InvalidArguments, RequestFailed, UnexpectedResponse
from duetime.tasks import registry

from .sink import Sink

WITHIN = 20  # seconds; only a broken build gets there


@contextmanager
def running_a_job() -> Iterator[Job]:
    job = Job(task_id="http_request", executor="auto", scheduled_fire_time=datetime.now(UTC))
    token = current_job.set(job)
    try:
        yield job
    finally:
        current_job.reset(token)


async def test_it_is_refused_to_reach_loopback_unless_the_operator_allows_it(sink: Sink) -> None:
    for url in (
        sink.url("/"),
        sink.url("/", "localhost"),
        sink.url("/", "2130706433"),
        sink.url("/", "[::1]"),
    ):
        with pytest.raises(AddressRefused) as caught:
            await http_request(url)
        assert "DUETIME_HTTP_ALLOW_PRIVATE" in str(caught.value)
    assert sink.received == []

    builtin.configure(allow_private=True)
    assert (await http_request(sink.url("/")))["status"] == 200

    builtin.configure(allow_private=False)
    with pytest.raises(AddressRefused):
        await http_request(sink.url("/"))
    assert len(sink.received) == 1


async def test_the_policy_of_one_task_is_not_that_of_another(sink: Sink) -> None:
    async def allowed() -> object:
        builtin.configure(allow_private=True)
        return await http_request(sink.url("/"))

    async def not_allowed() -> object:
        return await http_request(sink.url("/"))

    first, second = await asyncio.gather(allowed(), not_allowed(), return_exceptions=True)
    assert isinstance(first, dict)
    assert isinstance(second, AddressRefused)


async def test_method_json_headers_and_parameters_arrive(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    await http_request(
        sink.url("/hook?a=1"),
        "POST",
        json={"text": "grüße", "n": [1, None]},
        headers={"X-Api-Key": "k"},
        params={"b": "x y", "c": 2},
    )
    [came] = sink.received
    assert (came.method, came.target) == ("POST", "/hook?a=1&b=x+y&c=2")
    assert json.loads(came.body) == {"text": "grüße", "n": [1, None]}
    assert came.headers["content-type"] == "application/json"
    assert came.headers["x-api-key"] == "k"
    assert came.headers["user-agent"] == f"duetime/{version('duetime')}"


async def test_a_text_body_is_sent_as_utf_8(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    await http_request(sink.url(), "PUT", body="naïve", headers={"Content-Type": "text/plain"})
    assert sink.received[0].body == "naïve".encode()
    assert sink.received[0].headers["content-type"] == "text/plain"


async def test_the_idempotency_key_is_the_job_id_in_every_attempt(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    with running_a_job() as job:
        await http_request(sink.url())
        await http_request(sink.url())
        await http_request(sink.url(), headers={"idempotency-key": "mine", "user-agent": "me"})
    await http_request(sink.url())
    keys = [came.headers.get("idempotency-key") for came in sink.received]
    assert keys == [str(job.id), str(job.id), "mine", None]
    assert sink.received[2].headers["user-agent"] == "me"


async def test_any_2xx_is_expected_by_default_and_nothing_else(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    for status in (200, 201, 204, 299):
        sink.answer("/", status)
        assert (await http_request(sink.url()))["status"] == status
    for status in (302, 304, 400, 404, 500, 503):
        sink.answer("/", status, body=b"" if status == 304 else b"no such hook")
        with pytest.raises(UnexpectedResponse) as caught:
            await http_request(sink.url("/?token=s3cret"))
        assert f"got {status} from GET http://127.0.0.1:{sink.port}/" in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert status == 304 or "no such hook" in str(caught.value)


async def test_only_the_expected_statuses_succeed_when_they_are_named(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    sink.answer("/", 404)
    assert (await http_request(sink.url(), expected_status=404))["status"] == 404
    assert (await http_request(sink.url(), expected_status=[200, 404]))["status"] == 404
    sink.answer("/", 200)
    with pytest.raises(UnexpectedResponse, match="expected status 201 or 202, got 200"):
        await http_request(sink.url(), expected_status=[201, 202])


async def test_a_redirect_is_followed_only_when_asked_and_the_end_of_the_chain_counts(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    sink.answer("/old", 307, "Location: /new")
    sink.answer("/new", 200, body=b"here")
    with pytest.raises(UnexpectedResponse, match="follow_redirects"):
        await http_request(sink.url("/old"))
    result = await http_request(sink.url("/old"), "POST", json=1, follow_redirects=True)
    assert result["body"] == "here"
    assert [came.target for came in sink.received] == ["/old", "/old", "/new"]
    assert sink.received[2].body == b"1"


async def test_an_endless_redirect_ends(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    sink.answer("/loop", 302, "Location: /loop")
    with pytest.raises(RequestFailed, match="redirects"):
        await http_request(sink.url("/loop"), follow_redirects=True)
    assert len(sink.received) == 6


async def test_the_result_is_json_with_a_short_body_and_a_few_headers(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    sink.answer("/", 200, "Content-Type: text/plain; charset=iso-8859-1", "Set-Cookie: a=b", body=b"gr\xfc\xdfe\x00")
    result = await http_request(sink.url())
    assert result == {
        "status": 200,
        "headers": {"content-type": "text/plain; charset=iso-8859-1"},
        "body": "grüße\ufffd",
        "truncated": False,
    }
    json.dumps(result)

    sink.answer("/", 200, body="ü".encode() * 10_001)
    result = await http_request(sink.url())
    assert (result["body"], result["truncated"]) == ("ü" * 10_000, True)
    sink.answer("/", 200, body=b"x" * 10_000)
    assert (await http_request(sink.url()))["truncated"] is False


@pytest.mark.parametrize("charset", ["punycode", "zlib", "hex", "no-such", "utf-7", "x" * 500])
async def test_an_odd_charset_is_read_as_utf_8(sink: Sink, charset: str) -> None:
    builtin.configure(allow_private=True)
    sink.answer("/", 200, f"Content-Type: text/plain; charset={charset}", body=b"+2AA- abc")
    assert (await http_request(sink.url()))["body"] == "+2AA- abc"


async def test_reading_stops_at_the_limit_while_the_server_goes_on(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while True:
            sent += 65_536
            yield b"a" * 65_536

    sink.answers["/"] = endless
    result = await asyncio.wait_for(http_request(sink.url(), timeout=WITHIN), WITHIN)
    assert (result["status"], result["body"], result["truncated"]) == (200, "a" * 10_000, True)
    await asyncio.wait_for(sink.closed.wait(), WITHIN)
    assert MAX_READ_BYTES < sent < 100 * MAX_READ_BYTES


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_body_is_read_but_never_unpacked_whole(sink: Sink, encoding: str) -> None:
    builtin.configure(allow_private=True)
    bomb = b"a" * 50_000_000
    packed = gzip.compress(bomb) if encoding == "gzip" else zlib.compress(bomb)
    sink.answer("/", 200, f"Content-Encoding: {encoding}", body=packed)
    tracemalloc.start()
    try:
        result = await http_request(sink.url())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (result["body"], result["truncated"]) == ("a" * 10_000, True)
    assert peak < 5_000_000
    assert sink.received[0].headers["accept-encoding"] == "identity"


async def test_no_response_in_time_is_a_failure_that_says_so(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    release = asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        await release.wait()
        yield b""

    async def slow_body() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"
        await release.wait()

    try:
        for answer in (silent, slow_body):
            sink.answers["/"] = answer
            with pytest.raises(RequestFailed, match=r"within 0\.2 s"):
                await asyncio.wait_for(http_request(sink.url(), timeout=0.2), WITHIN)
        with pytest.raises(RequestFailed, match=r"within 0\.2 s"):  # the sink waits for HTTP in the middle of TLS
            await asyncio.wait_for(http_request(sink.url(scheme="https"), timeout=0.2), WITHIN)
        await asyncio.wait_for(sink.closed.wait(), WITHIN)
        gc.collect()  # a connection left open would be a ResourceWarning, and those are errors here
    finally:
        release.set()


async def test_a_cancelled_run_is_cancelled(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    arrived, release = asyncio.Event(), asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        arrived.set()
        await release.wait()
        yield b""

    sink.answers["/"] = silent
    run = asyncio.create_task(http_request(sink.url()))
    await asyncio.wait_for(arrived.wait(), WITHIN)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, WITHIN)
    release.set()


async def test_what_is_no_http_or_no_connection_is_a_failure(sink: Sink, unused_tcp_port: int) -> None:
    builtin.configure(allow_private=True)
    for answer in (b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"):
        sink.answers["/"] = answer
        with pytest.raises(RequestFailed):
            await http_request(sink.url())
    with pytest.raises(RequestFailed):
        await http_request(f"http://127.0.0.1:{unused_tcp_port}/")
    with pytest.raises(RequestFailed, match="looked up"):
        await http_request(f"http://{'a' * 64}.example/")


async def test_a_certificate_nobody_vouches_for_is_not_accepted(tls_sink: Sink) -> None:
    builtin.configure(allow_private=True)
    with pytest.raises(RequestFailed):
        await http_request(tls_sink.url("/", "localhost", "https"))
    assert tls_sink.received == []


async def test_proxies_of_the_environment_are_not_used(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin.configure(allow_private=True)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert (await http_request(sink.url()))["status"] == 200


async def test_a_body_that_cannot_be_sent_is_wrong_input(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    with pytest.raises(InvalidArguments, match="`json` or `body`"):
        await http_request(sink.url(), "POST", json={}, body="")
    with pytest.raises(InvalidArguments):
        await http_request(sink.url(), "POST", json=float("nan"))
    with pytest.raises(InvalidArguments):
        await http_request(sink.url(), "POST", body="\ud800")
    assert sink.received == []


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({}, "url"),
        ({"url": "example.com"}, "url"),
        ({"url": "ftp://user:s3cret@example.com"}, "url"),
        ({"url": "https://example.com", "method": "BREW"}, "method"),
        ({"url": "https://example.com", "timeout": 0}, "timeout"),
        ({"url": "https://example.com", "timeout": 301}, "timeout"),
        ({"url": "https://example.com", "expected_status": 99}, "expected_status"),
        ({"url": "https://example.com", "expected_status": []}, "expected_status"),
        ({"url": "https://example.com", "headers": {"X-A": "a\r\nX-B: b"}}, "headers"),
        ({"url": "https://example.com", "headers": {"X A": "a"}}, "headers"),
        ({"url": "https://example.com", "headers": {"Host": "internal"}}, "headers"),
        ({"url": "https://example.com", "headers": {"Transfer-Encoding": "chunked"}}, "headers"),
        ({"url": "https://example.com", "data": "x"}, "data"),
    ],
)
def test_wrong_arguments_are_named_at_the_door(arguments: dict[str, object], where: str) -> None:
    builtin.register()
    with pytest.raises(InvalidArguments) as caught:
        registry.find("http_request").bind(kwargs=arguments)
    assert all(detail["where"].split(".")[0] == where for detail in caught.value.details)
    assert "s3cret" not in str(caught.value)


def test_the_task_describes_itself_and_its_arguments() -> None:
    builtin.register()
    task = registry.find("http_request").record()
    assert task.description.startswith("Send an HTTP request")
    assert task.arguments["required"] == ["url"]
    for name, schema in task.arguments["properties"].items():
        assert schema.get("description"), name
    assert task.arguments["properties"]["url"]["format"] == "uri"
    TypeAdapter(dict[str, object]).dump_json(task.arguments)
