-- Times are UNIX nanoseconds. Decimals are text, kept to the last digit. JSON is text.

CREATE TABLE interactions (
    request_id TEXT NOT NULL,
    ts INTEGER NOT NULL,
    session TEXT NOT NULL,
    key_id TEXT,
    endpoint TEXT NOT NULL,
    model TEXT,
    engine TEXT NOT NULL,
    stream INTEGER,
    status INTEGER NOT NULL,
    error_code TEXT,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    queued_ms REAL,
    first_token_ms REAL,
    total_ms REAL NOT NULL,
    cache_hit INTEGER NOT NULL,
    request TEXT,
    response TEXT,
    PRIMARY KEY (request_id, ts)
) STRICT;
CREATE INDEX interactions_ts ON interactions (ts);

CREATE TABLE tool_calls (
    call_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    ts INTEGER NOT NULL,
    name TEXT NOT NULL,
    arguments TEXT,
    PRIMARY KEY (request_id, call_id, ts)
) STRICT;
CREATE INDEX tool_calls_ts ON tool_calls (ts);

CREATE TABLE signals (
    signal_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    ts_event INTEGER NOT NULL,
    ts_init INTEGER NOT NULL,
    instrument TEXT NOT NULL,
    action TEXT NOT NULL,
    confidence REAL NOT NULL,
    p_down REAL,
    p_flat REAL,
    p_up REAL,
    price TEXT,
    model TEXT NOT NULL,
    source TEXT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (signal_id, run_id, ts_init)
) STRICT;
CREATE INDEX signals_ts ON signals (ts_init);

-- scope: where the ids are unique. Empty: at the venue; else one simulated run.
CREATE TABLE orders (
    scope TEXT NOT NULL,
    order_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    signal_id TEXT,
    strategy TEXT NOT NULL,
    instrument TEXT NOT NULL,
    side TEXT NOT NULL,
    order_type TEXT NOT NULL,
    quantity TEXT NOT NULL,
    price TEXT,
    filled TEXT NOT NULL,
    average_price TEXT,
    status TEXT NOT NULL,
    ts_init INTEGER NOT NULL,
    ts_last INTEGER NOT NULL,
    PRIMARY KEY (scope, order_id)
) STRICT;
CREATE INDEX orders_run ON orders (run_id, ts_init);
CREATE INDEX orders_ts ON orders (ts_init);

CREATE TABLE order_events (
    scope TEXT NOT NULL,
    order_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    kind TEXT NOT NULL,
    ts_event INTEGER NOT NULL,
    ts_init INTEGER NOT NULL,
    reason TEXT,
    data TEXT NOT NULL,
    PRIMARY KEY (scope, order_id, sequence)
) STRICT;
CREATE INDEX order_events_ts ON order_events (ts_init);

CREATE TABLE fills (
    scope TEXT NOT NULL,
    venue TEXT NOT NULL,
    trade_id TEXT NOT NULL,
    order_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    strategy TEXT NOT NULL,
    instrument TEXT NOT NULL,
    side TEXT NOT NULL,
    price TEXT NOT NULL,
    quantity TEXT NOT NULL,
    commission TEXT NOT NULL,
    commission_currency TEXT NOT NULL,
    liquidity TEXT NOT NULL,
    ts_event INTEGER NOT NULL,
    PRIMARY KEY (scope, venue, trade_id)
) STRICT;
CREATE INDEX fills_order ON fills (scope, order_id);
CREATE INDEX fills_ts ON fills (ts_event);

CREATE TABLE snapshots (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    ts INTEGER NOT NULL,
    format TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (name, version)
) STRICT;

-- Messages that wait to be published; place keeps the order they were written in.
CREATE TABLE outbox (
    place INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    ts INTEGER NOT NULL,
    message TEXT NOT NULL,
    sent_ts INTEGER,
    refused TEXT
) STRICT;
CREATE INDEX outbox_waiting ON outbox (place) WHERE sent_ts IS NULL AND refused IS NULL;

CREATE TABLE processed_messages (
    consumer TEXT NOT NULL,
    message_id TEXT NOT NULL,
    ts INTEGER NOT NULL,
    PRIMARY KEY (consumer, message_id)
) STRICT;
CREATE INDEX processed_messages_ts ON processed_messages (ts);
