"""Which network addresses a built-in task may reach.

A task's URL comes from whoever may add a schedule, and it is opened from inside the server's network, where
databases, cloud metadata and admin pages answer without asking who is there (server-side request forgery,
CWE-918). So only addresses of the public internet are allowed, unless the operator says otherwise.
"""

from __future__ import annotations

from contextvars import ContextVar
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from duetime.errors import AddressRefused

private_allowed: ContextVar[bool] = ContextVar("duetime_private_allowed", default=False)
"""Whether tasks of this context may reach non-public addresses; ``duetime.builtin.configure`` sets it.

A context variable and not a global, so that two Duetimes of one process keep their own policies: the jobs of
a scheduler run in copies of the context it was started in.
"""

# What `ipaddress` calls global, or called so before Python 3.13, and is nobody's public server all the same.
_SPECIAL = {
    ip_network("100.64.0.0/10"): "an address behind a carrier's NAT",  # RFC 6598
    ip_network("192.0.0.0/24"): "a reserved address",  # RFC 6890; Oracle Cloud's metadata is in it
    ip_network("192.88.99.0/24"): "a reserved address",  # RFC 7526: the retired 6to4 relays
    ip_network("168.63.129.16/32"): "a cloud platform's own address",  # Azure's host agent
    ip_network("3fff::/20"): "a reserved address",  # RFC 9637: documentation
}
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # all the IANA has given out; the rest is local, special or unused
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are the IPv4 address that is reached


NOT_AN_ADDRESS = "not an IP address"


def why_refused(text: str) -> str | None:
    """Return what kind of address this is ("a loopback address") if tasks may not reach it, else None.

    An IPv6 address that carries an IPv4 address (mapped, 6to4, NAT64) is judged by what it carries. A NAT64
    prefix that a network chose for itself cannot be known here. Anything but a plain IP address is refused.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return NOT_AN_ADDRESS
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "a link-local address"
        carried = _carried(address)
        if carried is not None:
            return why_refused(str(carried))
    return _why_not_public(address)


def _carried(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def _why_not_public(address: IPv4Address | IPv6Address) -> str | None:
    for network, kind in _SPECIAL.items():
        if address in network:
            return kind
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if not address.is_global or (isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST):
        return "a private or reserved address"
    return None


def refused(subject: str, kind: str) -> AddressRefused:
    """Return the error for an address that may not be reached: ``"internal.example"`` is ``"a private …"``.

    What a name resolves to is not told: an answer would map the server's network for whoever asks.
    """
    return AddressRefused(
        f"expected a public address, got {subject}: {kind}. If tasks may reach the server's own network, set "
        f"DUETIME_HTTP_ALLOW_PRIVATE=true (Settings.http_allow_private)."
    )
