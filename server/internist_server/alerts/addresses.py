"""Addresses in what is sent: where a run's board is, how a receiver is named where others read it, and whether it is on
this machine or its link."""

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import quote, urlsplit

METADATA: Final = frozenset({ip_address("fd00:ec2::254"), ip_address("100.100.100.200")})
"""Where clouds tell a machine its secrets, beside 169.254.169.254: those of AWS by IPv6, and of Alibaba."""
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")


def run_url(run: str, *, external_url: str) -> str:
    """Where the run's board is."""
    return f"{external_url.rstrip('/')}/runs/{quote(run, safe='')}"


def receiver_name(url: str) -> str:
    """A receiver for logs and bodies, without what may be secret: a webhook's host, a chat service's scheme."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return f"{parts.scheme}://"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def is_local(url: str) -> bool:
    """Whether a webhook's address says that it is this machine, or what only its link reaches, such as a cloud's
    metadata. What a name leads to is looked at when it is called."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return is_local_address(host)


def is_local_address(text: str) -> bool:
    """Whether this is an address of this machine, or one that only its link reaches; a name is none."""
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        try:
            found = ip_address(socket.inet_aton(text))  # 127.1, 2130706433, 0x7f.1: as connections read them
        except (OSError, UnicodeEncodeError):
            return False
    if isinstance(found, IPv6Address):
        found = _within(found)
    return found.is_loopback or found.is_link_local or found.is_unspecified or found in METADATA


def _within(address: IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that one of IPv6 stands for: mapped, or translated on the way (RFC 6052, 3056)."""
    if address in _TRANSLATED:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
