"""What every request is held to before anything is done for it: its path, its query and what it resumes from."""

from fastapi import Request

from internist_server.errors import Invalid
from internist_server.inputs import MAX_ASKED, refuse_text, require_text, shown


async def require_plain(request: Request) -> None:
    """Refuse a request whose path or query no database could look up.

    Raises:
        Invalid: with the reason.
    """
    for name, value in request.path_params.items():
        text = str(value)
        if text in (".", "..") or "/" in text:
            raise Invalid(f"{name} names something, and is no way to it, got {shown(text)}")
        require_text(name, text)
    for name, value in request.query_params.multi_items():
        reason = refuse_text("the name of a parameter", name) or refuse_text(name, value, longest=MAX_ASKED)
        if reason is not None:
            raise Invalid(reason)
