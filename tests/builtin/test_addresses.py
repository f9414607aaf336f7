"""Which addresses are public. The lists are the IANA's special-purpose registries, by their RFCs."""

from __future__ import annotations

import pytest

from duetime.builtin.addresses import why_refused


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",  # noqa: S104
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",  # RFC 6598, behind a carrier's NAT
        "100.127.255.255",
        "100.100.100.200",  # Alibaba Cloud's metadata
        "169.254.169.254",  # the metadata of AWS, Google Cloud, Azure and others
        "192.0.0.192",  # Oracle Cloud's metadata
        "168.63.129.16",  # Azure's host agent
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "198.18.0.1",
        "192.88.99.1",
        "224.0.0.1",
        "224.0.1.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",  # IPv4-compatible, retired
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",  # the metadata of AWS over IPv6
        "ff02::1",
        "ff0e::1",
        "100::1",
        "2001::1",  # Teredo
        "2001:db8::1",
        "3fff::1",
        "4000::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:a00:1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2002:a9fe:a9fe::1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",  # RFC 8215: local NAT64
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert why_refused(address)


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "example.com", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "1.1.1.1 ", "[::1]"],
)
def test_what_is_not_a_plain_ip_address_is_refused(text: str) -> None:
    assert why_refused(text) == "not an IP address"


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.1",
        "172.32.0.1",
        "169.253.0.1",
        "223.255.255.254",
        "2606:4700:4700::1111",
        "2a00:1450:4001:80b::200e",
        "::ffff:8.8.8.8",
        "2002:808:808::1",
        "64:ff9b::8.8.8.8",
    ],
)
def test_a_public_address_is_allowed(address: str) -> None:
    assert why_refused(address) is None
