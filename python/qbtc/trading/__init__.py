"""The trading door: a config becomes a Nautilus node, a run directory and a report.

``plan`` loads and checks, ``market`` opens the data, ``host`` builds and runs the node (the only
place that does), ``ledger`` takes orders and fills out of it, ``record`` writes the run directory,
``report`` tells people. Strategies derive from ``strategy.QbtcStrategy``.
"""
