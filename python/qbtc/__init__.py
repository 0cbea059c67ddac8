"""QBTC: tensor-network signals on a NautilusTrader node, measured beside strong classical models.

Importing ``qbtc`` imports neither the trading host nor any network client.
"""

from qbtc.errors import ConfigError, DataError, ModelError, QbtcError, RunFailed

__all__ = ["ConfigError", "DataError", "ModelError", "QbtcError", "RunFailed"]
