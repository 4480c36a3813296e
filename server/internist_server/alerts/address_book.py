"""Who is told: every receiver's address, and which of them a message goes to; pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlsplit

import apprise

from internist.schema.alerts import Alert
from internist_server.alerts.addresses import receiver_name
from internist_server.alerts.rules import Receiver
from internist_server.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Address:
    """One receiver."""

    url: str
    """May hold secrets: it is neither logged nor stored."""
    is_webhook: bool
    name: str
    """What people read: its name in the file of rules, else its host or its service."""

    @property
    def key(self) -> str:
        """What it is known by where secrets do not belong."""
        return sha256(self.url.encode()).hexdigest()[:32]


class AddressBook:
    """The receivers of one server. `everyone` are all of them, each once."""

    def __init__(self, webhooks: Sequence[str], apprise_urls: Sequence[str], receivers: Sequence[Receiver]) -> None:
        """A book.

        Args:
            webhooks: addresses that get an Alertmanager body by POST.
            apprise_urls: chat services, in Apprise's notation.
            receivers: those with names, that rules may name.
        """
        plain = [Address(url, True, receiver_name(url)) for url in webhooks]
        plain += [Address(url, False, receiver_name(url)) for url in apprise_urls]
        self._named = {one.name: _address(one) for one in receivers}
        self._default = _unique([*plain, *(self._named[one.name] for one in receivers if one.default)])
        self.everyone = _unique([*self._default, *self._named.values()])

    def told(self, alerts: Sequence[Alert]) -> tuple[Address, ...]:
        """Whom a message about these alerts goes to: those that their rules name, and those that are told by default
        where some alert names nobody."""
        names = {name for alert in alerts for name in alert.receivers}
        is_for_all = any(not alert.receivers for alert in alerts) or not alerts
        named = [self._named[name] for name in sorted(names) if name in self._named]
        return _unique([*(self._default if is_for_all or not named else ()), *named])


def require_usable(addresses: Iterable[Address]) -> None:
    """Refuse addresses at which nobody can be told.

    Raises:
        SettingsError: it names the receiver, without what may be secret.
    """
    for address in addresses:
        if address.is_webhook:
            parts = urlsplit(address.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise SettingsError(f"the receiver {address.name} is no address such as https://host/hook")
        elif not apprise.Apprise().add(address.url):
            raise SettingsError(
                f"the receiver {address.name} is not an address that Apprise knows; where an address has commas, give "
                'the addresses as JSON: ["mailto://…", "slack://…"]'
            )


def _address(receiver: Receiver) -> Address:
    return Address(receiver.webhook_url or receiver.apprise_url or "", receiver.webhook_url is not None, receiver.name)


def _unique(addresses: Iterable[Address]) -> tuple[Address, ...]:
    return tuple({one.key: one for one in reversed(list(addresses))}.values())[::-1]
