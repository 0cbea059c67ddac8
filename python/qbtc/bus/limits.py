"""The limits of a bus, each with a name; the ones that queues carry are in ``topology``."""

import msgspec

__all__ = ["BusLimits"]


class BusLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much may wait, and for how long."""

    outbox_messages_max: int = 10_000
    """Messages that wait for the broker; one more is refused."""
    outbox_bytes_max: int = 256 * 1024 * 1024
    in_flight_max: int = 256
    """Messages sent and not yet confirmed."""
    stream_pending_max: int = 1024
    """Replies of one stream that the asker has not taken yet."""
    stream_pending_bytes_max: int = 64 * 1024 * 1024
    reply_wait_s_max: float = 30.0
    """How long a reply waits in this process for an asker to take the ones before it."""
    again_delay_s: float = 0.05
    """Pause before the first time a failed message is given back; it doubles each time."""
    again_delay_s_max: float = 5.0
    cancels_max: int = 4096
    """Cancellations remembered for requests that have not arrived yet."""
    stop_s_max: float = 5.0
    """How long a cancelled handler may take to end before its message is given back anyway."""
    close_s_max: float = 5.0
    """How long closing sends what waits."""
    connect_s_max: float = 10.0
    reconnect_s_min: float = 0.1
    """Pause before the first attempt to connect again; it doubles each time."""
    reconnect_s_max: float = 2.0
    confirm_s_max: float = 15.0
    """A connection on which a confirm takes longer is given up and made again."""
    dead_max: int = 10_000
    """Dead letters kept in this process."""
