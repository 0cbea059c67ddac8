"""Rows for tests of stores."""

import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec

from qbtc.messages.envelope import Message, message
from qbtc.messages.events import OrderEvent
from qbtc.store.records import (
    FillRecord,
    Interaction,
    OrderEventRecord,
    OrderRecord,
    SignalRecord,
    Snapshot,
    ToolCallRecord,
)

NOW = 1_795_000_000_000_000_000
"""November 2026."""


def interaction(number: int = 0, **changes: Any) -> Interaction:
    row = Interaction(
        request_id=f"req-{number}",
        ts=NOW + number,
        endpoint="/v1/chat/completions",
        model="smollm2",
        engine="local",
        stream=True,
        status=200,
        prompt_tokens=100,
        cached_tokens=64,
        completion_tokens=20,
        queued_ms=0.25,
        first_token_ms=12.5,
        total_ms=90.125,
    )
    return msgspec.structs.replace(row, **changes)


def tool_call(number: int = 0, **changes: Any) -> ToolCallRecord:
    row = ToolCallRecord(
        call_id=f"call-{number}", request_id=f"req-{number}", ts=NOW + number, name="read_file"
    )
    return msgspec.structs.replace(row, **changes)


def signal(number: int = 0, **changes: Any) -> SignalRecord:
    row = SignalRecord(
        signal_id=f"signal-{number}",
        ts_event=NOW + number,
        ts_init=NOW + number,
        run_id="run-1",
        instrument="BTCUSDT.BINANCE",
        action="BUY",
        confidence=0.75,
        p_down=0.125,
        p_flat=0.125,
        p_up=0.75,
        price="60000.10",
        model="mps",
        source="node",
    )
    return msgspec.structs.replace(row, **changes)


def order(number: int = 0, **changes: Any) -> OrderRecord:
    row = OrderRecord(
        order_id=f"order-{number}",
        sequence=0,
        run_id="run-1",
        signal_id=f"signal-{number}",
        strategy="follow",
        instrument="BTCUSDT.BINANCE",
        side="BUY",
        order_type="LIMIT",
        quantity="0.50",
        price="60000.10",
        status="SUBMITTED",
        ts_init=NOW + number,
        ts_last=NOW + number,
    )
    return msgspec.structs.replace(row, **changes)


def order_event(number: int = 0, **changes: Any) -> OrderEventRecord:
    row = OrderEventRecord(
        order_id=f"order-{number}",
        sequence=0,
        kind="submitted",
        ts_event=NOW + number,
        ts_init=NOW + number,
        data={"venue_order_id": "17"},
    )
    return msgspec.structs.replace(row, **changes)


def fill(number: int = 0, **changes: Any) -> FillRecord:
    row = FillRecord(
        venue="BINANCE",
        trade_id=f"trade-{number}",
        order_id=f"order-{number}",
        run_id="run-1",
        strategy="follow",
        instrument="BTCUSDT.BINANCE",
        side="BUY",
        price="60000.10",
        quantity="0.50",
        commission="30.00005",
        commission_currency="USDT",
        liquidity="taker",
        ts_event=NOW + number,
    )
    return msgspec.structs.replace(row, **changes)


def snapshot(version: int = 1, body: bytes = b"state", **changes: Any) -> Snapshot:
    row = Snapshot(
        name="signal/BTCUSDT.BINANCE",
        version=version,
        ts=NOW,
        format="qbtc.signal.1",
        sha256=hashlib.sha256(body).hexdigest(),
        body=body,
    )
    return msgspec.structs.replace(row, **changes)


def event_message(number: int = 0) -> Message:
    return message(
        OrderEvent(
            order_id=f"order-{number}",
            sequence=0,
            kind="submitted",
            run_id="run-1",
            strategy="follow",
            instrument="BTCUSDT.BINANCE",
            side="BUY",
            order_type="LIMIT",
            quantity="0.50",
            price="60000.10",
            status="SUBMITTED",
            ts_event=NOW,
            ts_init=NOW,
        ),
        source="qbtc/node/test",
        subject="BTCUSDT.BINANCE",
        id=f"message-{number}",
        now=datetime.fromtimestamp(NOW // 10**9, UTC),
    )
