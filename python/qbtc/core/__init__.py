"""What is computed: event columns, 26 features, signal models, training, the synthetic market.

The only door to the compiled module ``qbtc._core``. ``array`` and ``reference`` are the slow
twins that the fast paths are tested against.
"""
