"""How receivers are called: what a name leads to is looked at when it is called, and what was looked at is called."""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Final
from urllib.request import getproxies, proxy_bypass

import httpx

from internist_server.alerts.addresses import is_local_address

Resolve = Callable[[str, int], Sequence[str]]
_PORTS: Final = {"http": 80, "https": 443}


class LocalAddress(httpx.ConnectError):
    """A receiver's name leads to this machine or its link, and nobody said that it may."""


def open_client(timeout_s: float, *, may_be_local: bool, resolve: Resolve | None = None) -> httpx.Client:
    """A client for webhooks, which follows no redirects.

    Args:
        timeout_s: seconds after which a request that is not answered is given up.
        may_be_local: whether it may call this machine and its link.
        resolve: the addresses of a name; None: the machine's own way.
    """
    if may_be_local:
        return httpx.Client(timeout=timeout_s)
    return httpx.Client(timeout=timeout_s, transport=Checked(resolve or addresses_of))


class Checked(httpx.BaseTransport):
    """Calls a name at the addresses that were looked at: a name that is looked up twice may lead elsewhere the second
    time (DNS rebinding). Where the environment names a proxy, that looks names up, and is trusted with it."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        # no connection is kept: two names at one address have a certificate each
        self._direct = httpx.HTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))
        self._proxied = {scheme: httpx.HTTPTransport(proxy=proxy) for scheme, proxy in _proxies().items()}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to where its name leads.

        Raises:
            LocalAddress: that is this machine or its link.
            httpx.ConnectError: nobody is there.
        """
        scheme, host = request.url.scheme, request.url.host
        if scheme in self._proxied and not proxy_bypass(host):
            return self._proxied[scheme].handle_request(request)
        addresses = self._resolve(host, request.url.port or _PORTS[scheme])
        local = next((one for one in addresses if is_local_address(one)), None)
        if local is not None:
            raise LocalAddress(
                f"{host} leads to {local}, which is on this machine or its link: INTERNIST_LOCAL_WEBHOOKS=true lets it"
            )
        failure = httpx.ConnectError(f"{host} leads nowhere")
        for address in addresses:
            try:
                return self._direct.handle_request(_at(request, address))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error if isinstance(error, httpx.ConnectError) else httpx.ConnectError(str(error))
        raise failure

    def close(self) -> None:
        """Let go of all connections."""
        for transport in (self._direct, *self._proxied.values()):
            transport.close()


def addresses_of(host: str, port: int) -> list[str]:
    """Where a name leads, in the order in which to try.

    Raises:
        httpx.ConnectError: it leads nowhere.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"{host} cannot be looked up: {error}") from error
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def _proxies() -> dict[str, str]:
    """The environment's proxies, by the scheme of what is called."""
    named = getproxies()
    found = {scheme: named.get(scheme) or named.get("all") or "" for scheme in _PORTS}
    return {scheme: proxy if "://" in proxy else f"http://{proxy}" for scheme, proxy in found.items() if proxy}


def _at(request: httpx.Request, address: str) -> httpx.Request:
    """A request as it goes to one address: what it asks for, and whose certificate it wants, stay its name's."""
    host = request.url.host
    url = request.url.copy_with(host=f"[{address}]" if ":" in address else address)
    extensions = {**request.extensions, **({} if _is_address(host) else {"sni_hostname": host})}
    return httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
