"""Requests for trading signals, from the bus through a signal model and back.

The answer is a ``TradingSignal``: to whoever asked, and to everyone who listens for the instrument
(``trading.signal.<instrument>`` on the responses exchange). Its action is that of the likeliest
class (down: SELL, flat: HOLD, up: BUY; HOLD where two are equally likely), its confidence that
class's probability, and it is good for the horizon the model was trained on. It is advice: risk and
age are for whoever acts on it. The signal of a copy of a request has the same id.

A model that is not served, an unknown feature or a value that is no 32-bit number is answered with
a ``Failure``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from qbtc.bus import Bus, Delivery, Subscription, WorkQueue
from qbtc.bus.topology import TRADING_REQUESTS
from qbtc.core.features import FEATURE_NAMES, N_FEATURES
from qbtc.core.signal_model import SignalModel, load_model
from qbtc.errors import MessageError, ModelError
from qbtc.llm.errors import ModelNotFound, RequestError
from qbtc.messages.envelope import message
from qbtc.messages.events import Failure, TradingRequest, TradingSignal, likeliest
from qbtc.worker.guard import guarded

__all__ = ["ServedModel", "load_signal_models", "serve_signals"]

_COLUMNS = {name: column for column, name in enumerate(FEATURE_NAMES)}

Floats = npt.NDArray[np.float32]


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A signal model that requests can name."""

    name: str
    """Name of its file, without the ending."""
    sha256: str
    """Of its file."""
    model: SignalModel

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a model file.

        Raises
        ------
        ModelError
            It cannot be read, or is not a signal model.
        """
        model = load_model(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(name=path.stem, sha256=sha256, model=model)


def load_signal_models(paths: Sequence[Path]) -> tuple[ServedModel, ...]:
    """Read model files; the first is the default.

    Raises
    ------
    ModelError
        One cannot be read, or two have the same name.
    """
    models = tuple(ServedModel.load(path) for path in paths)
    names = [each.name for each in models]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"two signal models are named {name}; rename one of the files")
    return models


async def serve_signals(
    bus: Bus, models: Sequence[ServedModel], *, source: str, concurrency: int = 16
) -> Subscription:
    """Answer requests until the subscription is stopped.

    Parameters
    ----------
    bus
        Where they come from.
    models
        By the names that requests may give; the first is the default. At least one.
    source
        Who this is: ``qbtc/worker/<instance>``.
    concurrency
        How many at the same time.
    """
    worker = _Worker(bus, models, source)
    return await bus.subscribe(WorkQueue(TRADING_REQUESTS), worker.handle, prefetch=concurrency)


class _Worker:
    def __init__(self, bus: Bus, models: Sequence[ServedModel], source: str) -> None:
        self._bus = bus
        self._default = models[0]
        self._models = {model.name: model for model in models}
        self._source = source

    async def handle(self, delivery: Delivery) -> None:
        """Answer one request."""
        await guarded(delivery, self._serve, self._refuse)

    async def _serve(self, delivery: Delivery) -> None:
        asked = delivery.message
        if not isinstance(asked.data, TradingRequest):
            raise MessageError(f"{asked.type} is not for a trading worker")
        signal = self._signal(asked.data, signal_id=_signal_id(asked.id))
        answer = message(
            signal,
            id=signal.signal_id,
            source=self._source,
            subject=signal.instrument,
            correlationid=asked.correlationid,
        )
        # First everyone, so that whoever has the answer knows that it is out.
        await self._bus.publish(answer)
        await delivery.reply(answer)

    async def _refuse(self, delivery: Delivery, failure: Failure) -> None:
        asked = delivery.message
        await delivery.reply(
            message(
                failure,
                source=self._source,
                subject=asked.subject,
                correlationid=asked.correlationid,
            )
        )

    def _signal(self, asked: TradingRequest, *, signal_id: str) -> TradingSignal:
        served = self._default if asked.model is None else self._models.get(asked.model)
        if served is None:
            raise ModelNotFound(
                f"There is no signal model '{asked.model}'; served: {', '.join(self._models)}."
            )
        row, given = _row(asked.features)
        p_down, p_flat, p_up = served.model.infer(row)
        action, confidence = likeliest(p_down, p_flat, p_up)
        horizon_ns = served.model.metadata.label_horizon_ns
        return TradingSignal(
            signal_id=signal_id,
            instrument=asked.instrument,
            action=action,
            confidence=confidence,
            p_down=p_down,
            p_flat=p_flat,
            p_up=p_up,
            price=asked.price,
            ts_event=asked.ts_event,
            # The sender's clock may be that of a replay; this is all that is known of it.
            ts_init=asked.ts_event,
            valid_until=asked.ts_event + horizon_ns,
            horizon_ns=horizon_ns,
            model=served.name,
            model_sha256=served.sha256,
            features_given=given,
            request_id=asked.request_id,
            metadata=asked.metadata,
        )


def _row(
    features: Mapping[str, float | None],
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float32]], int]:
    """Return the features in the model's order, NaN where missing, and how many there are."""
    row = np.full(N_FEATURES, np.nan, np.float32)
    given = 0
    for name, value in features.items():
        column = _COLUMNS.get(name)
        if column is None:
            raise RequestError(
                f"There is no feature '{name}'; see `qbtc features`.",
                param=f"features.{name}",
                code="invalid_value",
            )
        if value is None:
            continue
        with np.errstate(over="ignore"):
            row[column] = value
        if not np.isfinite(row[column]):
            raise RequestError(
                f"Feature '{name}' is not a finite 32-bit number; leave out what is missing.",
                param=f"features.{name}",
                code="invalid_value",
            )
        given += 1
    return row, given


def _signal_id(request: str) -> str:
    """Return the id of the signal that a request gets, however often it is asked."""
    return hashlib.blake2b(f"signal|{request}".encode(), digest_size=16).hexdigest()
