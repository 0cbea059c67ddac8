"""Start and stop the components of a node in the order of the config.

Nautilus 2.0.0rc7 keeps actors and strategies in a hash map and starts them in its order, which
differs from process to process; orders sent by two strategies in ``on_start`` or ``on_stop`` would
reach the venue in an order drawn by lot. Here every ``on_start`` is held back until Nautilus has
started the last component; then all run in the order given. At the end of the data the first
``on_stop`` runs all, while every component can still send orders. A component that stops itself
earlier stops alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

__all__ = ["in_sequence"]


def in_sequence(
    components: Sequence[Any],
    at_end: Callable[[], bool],
    stopped: Callable[[Any], None] = lambda it: None,
) -> None:
    """Make components start and stop in this order, whatever order Nautilus calls them in.

    Parameters
    ----------
    components
        Actors and strategies of one node that has not been run yet.
    at_end
        Whether the last event was processed. It must not ask the clock of the component that
        stops: Nautilus has borrowed that one while the component stops itself.
    stopped
        Called with each component after its ``on_stop``.
    """
    starts = [component.on_start for component in components]
    stops = {id(component): component.on_stop for component in components}
    waiting = len(components)

    def start() -> None:
        nonlocal waiting
        waiting -= 1
        if waiting == 0:
            for on_start in starts:
                on_start()

    def stop(component: Any) -> None:
        for other in components if at_end() else (component,):
            on_stop = stops.pop(id(other), None)
            if on_stop is not None and waiting == 0:
                on_stop()
                stopped(other)

    for component in components:
        # Nautilus looks callbacks up on the object, so these serve as its methods.
        vars(component).update(on_start=start, on_stop=partial(stop, component))
