"""TOML configs as frozen structs: what a run, a training or a data set is made of.

An unknown key is an error that names the nearest valid key. Paths are relative to the config
file; ``${NAME}`` in a path is an environment variable (``${QBTC_REAL_DATA}`` defaults to
``../shared/data`` beside the checkout). Nothing here imports the trading host.
"""

from qbtc.config.data import (
    ArchiveSource,
    CatalogSource,
    DataSource,
    KlinesSource,
    RecordingSource,
    SyntheticSource,
)
from qbtc.config.load import convert, load_config, resolve_path
from qbtc.config.outside import (
    BusConfig,
    BusSignalConfig,
    RecordsConfig,
    ReplayConfig,
    RiskConfig,
)
from qbtc.config.run import (
    FillConfig,
    RunConfig,
    SignalConfig,
    StrategyConfig,
    VenueConfig,
)
from qbtc.config.train import (
    LabelConfig,
    LogisticConfig,
    MlpConfig,
    MpsConfig,
    SplitConfig,
    TrainConfig,
)

__all__ = [
    "ArchiveSource",
    "BusConfig",
    "BusSignalConfig",
    "CatalogSource",
    "DataSource",
    "FillConfig",
    "KlinesSource",
    "LabelConfig",
    "LogisticConfig",
    "MlpConfig",
    "MpsConfig",
    "RecordingSource",
    "RecordsConfig",
    "ReplayConfig",
    "RiskConfig",
    "RunConfig",
    "SignalConfig",
    "SplitConfig",
    "StrategyConfig",
    "SyntheticSource",
    "TrainConfig",
    "VenueConfig",
    "convert",
    "load_config",
    "resolve_path",
]
