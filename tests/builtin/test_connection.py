"""Connections of ``http_request``: the check holds at the moment of connecting."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence

import httpcore
import httpx
import pytest

from duetime.builtin.connection import CheckedBackend, CheckedTransport, Resolver, check_url
from duetime.errors import AddressRefused, InvalidArguments

from .sink import CERTIFICATE, Sink

PUBLIC, OTHER_PUBLIC = "93.184.215.14", "2606:4700:4700::1111"


def resolving_to(*answers: Sequence[str]) -> tuple[Resolver, list[str]]:
    """Return a resolver that gives these answers one after the other, and the list of the names it was
    asked."""
    asked: list[str] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    return resolver, asked


class Dialled(httpcore.AsyncMockBackend):
    """Notes where it was asked to connect, and plays a server there; the addresses in ``dead`` do not
    answer."""

    def __init__(self, *dead: str) -> None:
        super().__init__([b"HTTP/1.1 204 No Content\r\n\r\n"])
        self.dead = dead
        self.addresses: list[str] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.addresses.append(host)
        if host in self.dead:
            raise httpcore.ConnectError("nobody there")
        return await super().connect_tcp(host, port, timeout, local_address, socket_options)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://[::1]:8000/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fe80::1%25eth0]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://134744072/",  # 8.8.8.8 as one number: public, and not how anybody writes it
        "http://1.2.3.4.5/",
        "http://example.com./",
        "http://localhost/",
        "http://LocalHost:8080/",
        "http://api.localhost/",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://%6c%6fcalhost/",
        "http://*.example.com/",
    ],
)
def test_a_refused_host_is_refused_in_each_of_its_spellings(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_url(url)


@pytest.mark.parametrize("url", ["https://example.com/a?b=c", "http://xn--bcher-kva.example:8080", "https://8.8.8.8/"])
def test_a_public_url_passes(url: str) -> None:
    assert str(check_url(url)) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "/path",
        "ftp://example.com/",
        "file:///etc/passwd",
        "unix:///run/docker.sock",
        "https://",
        "http://exa\nmple.com",
        "http://[::1",
        "http://example.com:99999/",
        "http://①②⑦.⓪.⓪.①/",
        "http://0177.0.0.1/",
        "http://999.1.1.1/",
        "http://example.com/" + "b" * 9000,
    ],
)
def test_what_is_not_an_http_url_is_refused_whatever_the_policy(url: str) -> None:
    with pytest.raises(InvalidArguments):
        check_url(url, allow_private=True)


def test_a_refusal_does_not_repeat_the_password() -> None:
    with pytest.raises(AddressRefused) as caught:
        check_url("http://user:s3cret@example.com/path?token=s3cret")
    assert "s3cret" not in str(caught.value)
    assert "http://example.com/path" in str(caught.value)


async def test_a_name_is_resolved_once_and_the_checked_address_is_the_one_connected_to() -> None:
    # DNS rebinding: the second answer would be the metadata service.
    resolver, asked = resolving_to([PUBLIC], ["169.254.169.254"])
    network = Dialled()
    transport = CheckedTransport(resolver=resolver, backend=network)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        response = await client.get("http://rebinding.example/")
    assert response.status_code == 204
    assert asked == ["rebinding.example"]
    assert network.addresses == [PUBLIC]


async def test_a_name_that_resolves_to_a_private_address_is_refused_without_connecting() -> None:
    for answer in (["10.0.0.7"], [PUBLIC, "10.0.0.7"], ["fd00::7", PUBLIC], ["::ffff:10.0.0.7"]):
        resolver, _ = resolving_to(answer)
        network = Dialled()
        transport = CheckedTransport(resolver=resolver, backend=network)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            with pytest.raises(AddressRefused) as caught:
                await client.get("http://internal.example/")
        assert network.addresses == []
        assert "internal.example" in str(caught.value)
        assert "10.0.0.7" not in str(caught.value)  # or the errors would map the network


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    resolver, _ = resolving_to([OTHER_PUBLIC, PUBLIC])
    network = Dialled(OTHER_PUBLIC)
    transport = CheckedTransport(resolver=resolver, backend=network)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        assert (await client.get("http://two.example/")).status_code == 204
    assert network.addresses == [OTHER_PUBLIC, PUBLIC]


async def test_tls_and_the_host_header_keep_the_name_while_the_connection_goes_to_the_address(
    tls_sink: Sink,
) -> None:
    resolver, _ = resolving_to(["127.0.0.1"])
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    transport = CheckedTransport(allow_private=True, ssl_context=trusting, resolver=resolver)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        response = await client.get(tls_sink.url("/hook", "service.example", "https"))
    assert response.status_code == 200
    assert tls_sink.names_asked_for == ["service.example"]
    assert tls_sink.received[0].headers["host"] == f"service.example:{tls_sink.port}"


async def test_a_certificate_of_another_name_is_not_accepted(tls_sink: Sink) -> None:
    resolver, _ = resolving_to(["127.0.0.1"])
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    transport = CheckedTransport(allow_private=True, ssl_context=trusting, resolver=resolver)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        with pytest.raises(httpcore.ConnectError):
            await client.get(tls_sink.url("/hook", "other.example", "https"))
    assert tls_sink.received == []


async def test_a_redirect_of_an_allowed_host_to_a_refused_one_is_refused(sink: Sink) -> None:
    class Outside(Dialled):
        """Only the address of the allowed host is connected to the sink."""

        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
        ) -> httpcore.AsyncNetworkStream:
            assert host == PUBLIC
            return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", sink.port, timeout)

    for location, resolved in (
        ("http://internal.example/", "192.168.0.1"),
        ("http://127.0.0.1/", PUBLIC),  # refused as it is written, whatever a resolver makes of it
        ("http://user:pw@public.example/", PUBLIC),
    ):
        sink.answer("/moved", 302, f"Location: {location}")
        resolver, _ = resolving_to([PUBLIC], [resolved])
        transport = CheckedTransport(resolver=resolver, backend=Outside())
        async with httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=True) as client:
            with pytest.raises(AddressRefused):
                await client.get("http://public.example/moved")
    assert [came.target for came in sink.received] == ["/moved"] * 3


async def test_unix_sockets_are_refused() -> None:
    with pytest.raises(AddressRefused):
        await CheckedBackend(allow_private=True).connect_unix_socket("/run/docker.sock")
