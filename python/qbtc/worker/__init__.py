"""Workers: they take requests from the bus and answer them, several side by side.

``language`` answers for language models and ``signals`` for signal models; ``heartbeat`` says that
a service lives; ``commands`` is ``qbtc worker``.
"""
