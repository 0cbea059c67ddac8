"""The door to the bus: a URL says which."""

from qbtc.bus.inprocess import InProcessBus
from qbtc.bus.limits import BusLimits
from qbtc.bus.protocol import Bus
from qbtc.bus.topology import check_prefix
from qbtc.errors import InputError
from qbtc.messages.envelope import new_id

__all__ = ["open_bus"]


async def open_bus(
    url: str | None,
    *,
    prefix: str = "",
    source: str | None = None,
    limits: BusLimits | None = None,
    must_connect: bool = True,
) -> Bus:
    """Open a bus.

    Parameters
    ----------
    url
        ``amqp://user:password@host:port/vhost``, or ``amqps://`` with TLS; None or ``memory://``:
        a bus in this process, which nothing outlives.
    prefix
        What the names of exchanges and queues begin with, so that several systems share a broker.
    source
        Who speaks: ``qbtc/<service>/<instance>``.
    limits
        How much may wait.
    must_connect
        Whether a broker that is away is an error now; else it is ``bus.problem()`` until it comes.

    Raises
    ------
    InputError
        The URL is none of these.
    BusUnavailable
        The broker cannot be reached, or refuses us.
    BusError
        Its queues are not those of this version.
    """
    source = source or f"qbtc/bus/{new_id()}"
    if url is None or url == "memory://":
        return InProcessBus(source=source, limits=limits)
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in ("amqp", "amqps"):
        # The URL may hold a password, so it is not quoted.
        raise InputError(
            "a bus URL begins with amqp://, amqps:// or memory://"
            + (f", not {scheme}://" if scheme else "")
        )
    check_prefix(prefix)
    from qbtc.bus.rabbit import RabbitBus

    return await RabbitBus.open(
        url, prefix=prefix, source=source, limits=limits, must_connect=must_connect
    )
