"""``notify`` through apprise's own services, against a real server on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from urllib.parse import quote

import apprise
import pytest

from duetime import builtin
from duetime.builtin.notify import LOCAL_SCHEMES, THREADED_SCHEMES, notify
from duetime.errors import AddressRefused, InvalidArguments, NotificationFailed
from duetime.tasks import registry

from .sink import Sink

# apprise imports it where Python still has it.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

SECRET = "pA55-w0rd"


async def send(*args: object, **kwargs: object) -> dict[str, object]:
    """Call the task as the ``auto`` executor does: in a thread, in a copy of the context."""
    return await asyncio.to_thread(notify, *args, **kwargs)  # type: ignore[arg-type]


async def test_a_message_arrives_and_the_result_shows_no_more_than_the_scheme(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    url = f"json://user:{SECRET}@127.0.0.1:{sink.port}/{SECRET}?method=POST"
    result = await send(url, "Water the *plants*", title="Reminder")
    assert result == {"delivered": ["json://…"]}
    [came] = sink.received
    message = json.loads(came.body)
    assert (message["title"], message["message"]) == ("Reminder", "Water the *plants*")
    assert came.target == f"/{SECRET}"


async def test_each_of_several_urls_gets_it_even_when_one_fails(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    sink.answer("/broken", 500)
    host = f"127.0.0.1:{sink.port}"
    urls = [f"json://{host}/broken", f"json://{host}/a", f"form://{host}/b", f"xml://{host}/c"]
    with pytest.raises(NotificationFailed) as caught:
        await send(urls, "hello")
    assert [came.target for came in sink.received] == ["/broken", "/a", "/b", "/c"]
    assert "got 3 that did" in str(caught.value)
    assert [detail["where"] for detail in caught.value.details] == ["json://…"]
    assert (await send(urls[1:], "hello"))["delivered"] == ["json://…", "form://…", "xml://…"]


async def test_markdown_becomes_what_the_service_understands(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    await send(f"json://127.0.0.1:{sink.port}/?format=html", "Water the **plants**", format="markdown")
    assert "<strong>plants</strong>" in json.loads(sink.received[0].body)["message"]


async def test_a_failure_says_why_and_keeps_the_secrets(
    sink: Sink, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    builtin.configure(allow_private=True)
    caplog.set_level(logging.DEBUG)
    sink.answer(f"/{SECRET}", 401)
    for url, reason in (
        (f"json://user:{SECRET}@127.0.0.1:{sink.port}/{SECRET}", "error=401"),
        (f"json://user:{quote('pA55 w0rd')}@127.0.0.1:{unused_tcp_port}/{SECRET}", "onnection error"),
        (f"ntfy://{SECRET}:{SECRET}@127.0.0.1:{unused_tcp_port}/{SECRET}", "onnection error"),
        (f"mailto://{SECRET}:{SECRET}@example.com:{unused_tcp_port}?smtp=127.0.0.1", "onnection error"),
    ):
        with pytest.raises(NotificationFailed) as caught:
            await send(url, "hello")
        assert reason in str(caught.value)
        assert f"{url.partition(':')[0]}://…" in str(caught.value)
        assert "w0rd" not in str(caught.value)
    assert "w0rd" not in caplog.text


async def test_private_addresses_are_refused_whatever_part_of_the_url_names_them(sink: Sink) -> None:
    port = sink.port
    for url in (
        f"json://127.0.0.1:{port}/",
        f"json://localhost:{port}/",
        f"json://[::1]:{port}/",
        f"form://127.0.0.1:{port}/",
        f"xml://127.0.0.1:{port}/",
        f"apprise://127.0.0.1:{port}/token",
        f"gotify://127.0.0.1:{port}/token",
        f"ntfy://127.0.0.1:{port}/topic",
        f"mailto://user:pass@example.com:{port}?smtp=127.0.0.1",
        f"mqtt://example.com:{port}/topic",
        "xmpps://user:pass@example.com",
        "json://169.254.169.254/latest/meta-data/",
        "json://2130706433/",
    ):
        with pytest.raises(AddressRefused) as caught:
            await send(url, "hello")
        assert "DUETIME_HTTP_ALLOW_PRIVATE" in str(caught.value), url
    assert sink.received == []


async def test_a_redirect_is_not_followed_with_the_message_and_its_credentials(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    sink.answer("/", 307, f"Location: {sink.url('/elsewhere')}")
    with pytest.raises(NotificationFailed):
        await send(f"json://127.0.0.1:{sink.port}/", "hello")
    assert [came.target for came in sink.received] == ["/"]


@pytest.mark.parametrize(
    "url",
    [
        "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js?template={path}",
        "tgram://123456789:abcdefg_hijklmnop/12315544/?template={path}",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/?template={path}",
        "workflow://host:443/workflow/signature/?template=file://{path}",
    ],
)
async def test_a_url_cannot_make_the_server_read_a_file(url: str, tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    path.write_text('{"text": "s3cret"}')
    for allow in (False, True):
        builtin.configure(allow_private=allow)
        with pytest.raises(InvalidArguments, match="open a file") as caught:
            await send(url.format(path=path), "hello")
        assert str(path) not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"mailto://{SECRET}:{SECRET}@127.0.0.1:25/{SECRET}@example.com",  # apprise: "Invalid ~From~ email: …"
        f"nosuchservice://{SECRET}@example.com/{SECRET}",
        f"json://user:{SECRET}@",
    ],
)
async def test_an_unusable_url_is_refused_without_a_letter_of_its_secrets(url: str) -> None:
    with pytest.raises(InvalidArguments, match="expected the URL of a service") as caught:
        await send(url, "hello")
    assert "w0rd" not in str(caught.value)
    assert "p...d" not in str(caught.value)  # how apprise itself would hide it


async def test_nothing_is_sent_when_one_of_the_urls_is_wrong(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    with pytest.raises(InvalidArguments, match="nosuchservice") as caught:
        await send([f"json://127.0.0.1:{sink.port}/", f"nosuchservice://{SECRET}@example.com"], "hello")
    assert "w0rd" not in str(caught.value)
    assert sink.received == []


def test_the_refused_services_are_spelt_as_apprise_spells_them() -> None:
    known = set(apprise.NotificationManager().schemas(include_disabled=True))  # type: ignore[no-untyped-call]
    assert known >= LOCAL_SCHEMES | THREADED_SCHEMES


def test_the_services_that_connect_from_a_thread_of_their_own_are_known() -> None:
    # Fails when a new release of apprise has another one, which must then be added or looked at.
    plugins = Path(apprise.__file__).parent / "plugins"
    threaded = {
        file.relative_to(plugins).parts[0].removesuffix(".py")
        for file in plugins.rglob("*.py")
        if re.search(r"Thread\(|loop_start\(|new_event_loop\(|asyncio\.run\(|Executor\(", file.read_text())
    }
    assert threaded == {scheme for scheme in THREADED_SCHEMES if not scheme.endswith("s")}


@pytest.mark.parametrize("scheme", sorted(LOCAL_SCHEMES))
async def test_services_that_act_on_the_server_itself_are_refused(scheme: str) -> None:
    builtin.configure(allow_private=True)
    builtin.register()
    for url in (f"{scheme}://", f"{scheme.upper()}://host"):
        with pytest.raises(InvalidArguments):
            registry.find("notify").bind(kwargs={"urls": url, "body": "x"})
        with pytest.raises(InvalidArguments):
            await send(url, "hello")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"body": "x"}, "urls"),
        ({"urls": [], "body": "x"}, "urls"),
        ({"urls": f"no scheme {SECRET}", "body": "x"}, "urls"),
        ({"urls": ["json://example.com", SECRET], "body": "x"}, "urls"),
        ({"urls": "json://example.com"}, "body"),
        ({"urls": "json://example.com", "body": ""}, "body"),
        ({"urls": "json://example.com", "body": "x", "format": "pdf"}, "format"),
        ({"urls": "json://example.com", "body": "x", "attach": "/etc/passwd"}, "attach"),
    ],
)
def test_wrong_arguments_are_named_at_the_door_without_their_secrets(arguments: dict[str, object], where: str) -> None:
    builtin.register()
    with pytest.raises(InvalidArguments) as caught:
        registry.find("notify").bind(kwargs=arguments)
    assert all(detail["where"].split(".")[0] == where for detail in caught.value.details)
    assert "w0rd" not in str(caught.value)


def test_the_task_describes_itself_and_its_arguments() -> None:
    builtin.register()
    task = registry.find("notify").record()
    assert task.description.startswith("Send a message by SMS, e-mail, push or chat")
    assert sorted(task.arguments["required"]) == ["body", "urls"]
    for name, schema in task.arguments["properties"].items():
        assert schema.get("description"), name
