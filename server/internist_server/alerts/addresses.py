"""Addresses in what is sent: where a run's board is, how a receiver is named where others read it, and whether it is on
this machine or its link."""

import socket
from ipaddress import IPv6Address, ip_address
from urllib.parse import quote, urlsplit


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
    """Whether a webhook's address is this machine, or what only its link reaches, such as a cloud's metadata. A name is
    taken for what it says."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        try:
            found = ip_address(socket.inet_aton(host))  # 127.1, 2130706433, 0x7f.1: as connections read them
        except (OSError, UnicodeEncodeError):
            return False
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_loopback or found.is_link_local or found.is_unspecified
