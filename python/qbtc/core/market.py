"""The synthetic market of the core, as columns of events."""

from typing import Any

from numpy.typing import NDArray

from qbtc import _core
from qbtc.errors import DataError

__all__ = ["simulate_market"]


def simulate_market(
    *,
    seed: int,
    duration_s: float,
    start_ns: int,
    edge: float,
    price: float,
    price_increment: float,
    size_increment: float,
) -> dict[str, NDArray[Any]]:
    """Generate a market; see ``_core.simulate_market`` for the model, limits and columns.

    Raises
    ------
    DataError
        An argument is out of its limits; the message names it.
    """
    try:
        return _core.simulate_market(
            seed=seed,
            duration_s=duration_s,
            start_ns=start_ns,
            edge=edge,
            price=price,
            price_increment=price_increment,
            size_increment=size_increment,
        )
    except (_core.CoreInputError, OverflowError, MemoryError) as error:
        raise DataError(f"synthetic market: {error}") from None
