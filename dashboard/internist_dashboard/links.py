"""Addresses of the board's own pages, under the path at which people reach the board."""

from internist_dashboard.viewer import VIEWER


def link(page: str) -> str:
    """The address of a page such as `/runs/a`, for the viewer being answered."""
    return VIEWER.get().base + page


def page_at(address: str) -> str:
    """The page at an address: `link`, undone."""
    base = VIEWER.get().base
    return (address.removeprefix(base) or "/") if address == base or address.startswith(f"{base}/") else address
