"""What travels between parts of QBTC. Messages never change after they are made.

``signals`` and ``language`` are what travels inside a process: a model's view of a market, and what
goes into a language engine and comes out. ``envelope`` and ``events`` are what travels on the bus,
as the files of ``schemas/`` say; ``codec`` turns them into bytes and back, and nothing enters a
process that the schema of its type refuses. Times are UNIX nanoseconds, or RFC 3339 in UTC where
CloudEvents says so; money, prices and quantities are decimal text, never floats.
"""

from qbtc.messages.signals import Signal

__all__ = ["Signal"]
