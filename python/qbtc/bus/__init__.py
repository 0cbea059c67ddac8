"""The message bus: in this process, or RabbitMQ. For what is allowed to be slow.

``open_bus(url)`` is the door; ``protocol`` says what a bus does and promises, ``topology`` which
exchanges and queues there are. A trading node never waits for a bus.
"""

from qbtc.bus.limits import BusLimits
from qbtc.bus.opening import open_bus
from qbtc.bus.protocol import Bus, Delivery, Handler, Subscription, Topic, WorkQueue

__all__ = [
    "Bus",
    "BusLimits",
    "Delivery",
    "Handler",
    "Subscription",
    "Topic",
    "WorkQueue",
    "open_bus",
]
