"""Addresses in what is sent: where a run's board is, and how a receiver is named where others read it."""

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
