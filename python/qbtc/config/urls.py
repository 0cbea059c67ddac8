"""Addresses of servers: what may be shown of them."""

__all__ = ["redacted"]


def redacted(url: str) -> str:
    """Return an address without names, passwords and options, for messages and logs.

    >>> redacted("amqp://guest:secret@127.0.0.1:5672/%2F?heartbeat=5")
    'amqp://***@127.0.0.1:5672/%2F?***'
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        # Without a scheme nothing says where a secret would stand.
        return "***"
    # A password may hold any sign that nobody escaped, so what counts is the last @.
    user, at, place = rest.rpartition("@")
    path = place.split("?")[0].split("#")[0]
    hidden = "?***" if path != place else ""
    return f"{scheme}://{'***@' if at or user else ''}{path}{hidden}"
