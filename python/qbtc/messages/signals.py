"""What travels between parts of a run. Messages never change after they are made.

Times are UNIX nanoseconds. ``ts_event`` is the time of the market event that caused the message.
"""

from typing import Protocol

__all__ = ["Signal"]


class Signal(Protocol):
    """A model's view of one instrument at one market event.

    The live one is ``qbtc._core.Signal``, made in Rust; any object with these attributes serves in
    a test. The probabilities add up to 1 and speak of the mid's move over the model's horizon.
    """

    @property
    def ts_event(self) -> int:
        """Time of the quote the signal was computed at."""
        ...

    @property
    def mid(self) -> float:
        """Mid price of that quote."""
        ...

    @property
    def p_down(self) -> float:
        """Probability that the mid falls by more than the model's threshold."""
        ...

    @property
    def p_flat(self) -> float:
        """Probability that the mid stays within the threshold."""
        ...

    @property
    def p_up(self) -> float:
        """Probability that the mid rises by more than the threshold."""
        ...

    @property
    def entropy(self) -> float:
        """Entropy of the three probabilities in nats; log 3 = the model knows nothing."""
        ...

    @property
    def margin(self) -> float:
        """Largest probability minus the second."""
        ...

    @property
    def ood(self) -> float:
        """Out-of-distribution score of the features against the training rows."""
        ...
