"""Who may ask for what, and how much of it.

``gate`` is the one ASGI middleware, outermost; the other modules are the checks it makes, in order:
``hosts``, ``keys`` and ``scopes``, ``limits``, ``bodies``. ``logs`` writes what happened.
"""
