-- Everything is in the schema qbtc, made before this runs. Times are UNIX nanoseconds in bigint, and
-- the column "at" says the same as a timestamptz. Decimals are numeric, kept to the last digit.
-- Contents are json, not jsonb: kept byte for byte, and cast where they are searched.

CREATE TABLE qbtc.interactions (
    request_id text NOT NULL,
    ts bigint NOT NULL,
    session text NOT NULL,
    key_id text,
    endpoint text NOT NULL,
    model text,
    engine text NOT NULL,
    stream boolean,
    status integer NOT NULL,
    error_code text,
    prompt_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    queued_ms double precision,
    first_token_ms double precision,
    total_ms double precision NOT NULL,
    cache_hit boolean NOT NULL,
    request json,
    response json,
    at timestamptz GENERATED ALWAYS AS (to_timestamp(ts / 1e9::double precision)) STORED,
    PRIMARY KEY (request_id, ts)
) PARTITION BY RANGE (ts);
CREATE TABLE qbtc.interactions_default PARTITION OF qbtc.interactions DEFAULT;
CREATE INDEX interactions_ts ON qbtc.interactions USING brin (ts);

CREATE TABLE qbtc.tool_calls (
    call_id text NOT NULL,
    request_id text NOT NULL,
    ts bigint NOT NULL,
    name text NOT NULL,
    arguments text,
    at timestamptz GENERATED ALWAYS AS (to_timestamp(ts / 1e9::double precision)) STORED,
    PRIMARY KEY (request_id, call_id, ts)
) PARTITION BY RANGE (ts);
CREATE TABLE qbtc.tool_calls_default PARTITION OF qbtc.tool_calls DEFAULT;
CREATE INDEX tool_calls_ts ON qbtc.tool_calls USING brin (ts);

CREATE TABLE qbtc.signals (
    signal_id text NOT NULL,
    run_id text NOT NULL,
    ts_event bigint NOT NULL,
    ts_init bigint NOT NULL,
    instrument text NOT NULL,
    action text NOT NULL,
    confidence double precision NOT NULL,
    p_down double precision,
    p_flat double precision,
    p_up double precision,
    price numeric,
    model text NOT NULL,
    source text NOT NULL,
    outcome text NOT NULL,
    at timestamptz GENERATED ALWAYS AS (to_timestamp(ts_init / 1e9::double precision)) STORED,
    PRIMARY KEY (signal_id, run_id, ts_init)
) PARTITION BY RANGE (ts_init);
CREATE TABLE qbtc.signals_default PARTITION OF qbtc.signals DEFAULT;
CREATE INDEX signals_ts ON qbtc.signals USING brin (ts_init);

-- scope: where the ids are unique. Empty: at the venue; else one simulated run.
CREATE TABLE qbtc.orders (
    scope text NOT NULL,
    order_id text NOT NULL,
    sequence bigint NOT NULL,
    run_id text NOT NULL,
    signal_id text,
    strategy text NOT NULL,
    instrument text NOT NULL,
    side text NOT NULL,
    order_type text NOT NULL,
    quantity numeric NOT NULL,
    price numeric,
    filled numeric NOT NULL,
    average_price numeric,
    status text NOT NULL,
    ts_init bigint NOT NULL,
    ts_last bigint NOT NULL,
    at timestamptz GENERATED ALWAYS AS (to_timestamp(ts_init / 1e9::double precision)) STORED,
    PRIMARY KEY (scope, order_id)
);
CREATE INDEX orders_run ON qbtc.orders (run_id, ts_init);
CREATE INDEX orders_id ON qbtc.orders (order_id);
CREATE INDEX orders_ts ON qbtc.orders (ts_init);

CREATE TABLE qbtc.order_events (
    scope text NOT NULL,
    order_id text NOT NULL,
    sequence bigint NOT NULL,
    kind text NOT NULL,
    ts_event bigint NOT NULL,
    ts_init bigint NOT NULL,
    reason text,
    data json NOT NULL,
    at timestamptz GENERATED ALWAYS AS (to_timestamp(ts_event / 1e9::double precision)) STORED,
    PRIMARY KEY (scope, order_id, sequence)
);
CREATE INDEX order_events_ts ON qbtc.order_events (ts_init);

CREATE TABLE qbtc.fills (
    scope text NOT NULL,
    venue text NOT NULL,
    trade_id text NOT NULL,
    order_id text NOT NULL,
    run_id text NOT NULL,
    strategy text NOT NULL,
    instrument text NOT NULL,
    side text NOT NULL,
    price numeric NOT NULL,
    quantity numeric NOT NULL,
    commission numeric NOT NULL,
    commission_currency text NOT NULL,
    liquidity text NOT NULL,
    ts_event bigint NOT NULL,
    at timestamptz GENERATED ALWAYS AS (to_timestamp(ts_event / 1e9::double precision)) STORED,
    PRIMARY KEY (scope, venue, trade_id)
);
CREATE INDEX fills_order ON qbtc.fills (scope, order_id);
CREATE INDEX fills_ts ON qbtc.fills (ts_event);

CREATE TABLE qbtc.snapshots (
    name text NOT NULL,
    version bigint NOT NULL,
    ts bigint NOT NULL,
    format text NOT NULL,
    sha256 text NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (name, version)
);

-- Messages that wait to be published; place keeps the order they were written in.
CREATE TABLE qbtc.outbox (
    place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    ts bigint NOT NULL,
    message text NOT NULL,
    sent_ts bigint,
    refused text
);
CREATE INDEX outbox_waiting ON qbtc.outbox (place) WHERE sent_ts IS NULL AND refused IS NULL;

-- Not partitioned: a mark must be the only one whatever its time, and a partitioned table can only
-- promise that within a partition. Old marks are deleted.
CREATE TABLE qbtc.processed_messages (
    consumer text NOT NULL,
    message_id text NOT NULL,
    ts bigint NOT NULL,
    PRIMARY KEY (consumer, message_id)
);
CREATE INDEX processed_messages_ts ON qbtc.processed_messages USING brin (ts);

-- Row-level security, deny by default, for the owner too; each role gets in by a policy.
DO $$
DECLARE
    one name;
BEGIN
    FOR one IN SELECT tablename FROM pg_tables WHERE schemaname = 'qbtc' LOOP
        EXECUTE format('ALTER TABLE qbtc.%I ENABLE ROW LEVEL SECURITY', one);
        EXECUTE format('ALTER TABLE qbtc.%I FORCE ROW LEVEL SECURITY', one);
        IF one NOT LIKE '%\_default' THEN
            EXECUTE format(
                'CREATE POLICY owner ON qbtc.%I TO CURRENT_USER USING (true) WITH CHECK (true)', one
            );
        END IF;
    END LOOP;
END
$$;

-- Makes the partitions of a table for the months from one time to another. Whoever writes may call
-- it and needs no right to make tables. Months that no clock should show stay in the default
-- partition, and so do rows that came there first.
CREATE FUNCTION qbtc.make_partitions(parent text, first_ns bigint, last_ns bigint)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    month timestamp := date_trunc('month', to_timestamp(first_ns / 1e9) AT TIME ZONE 'UTC');
    last timestamp := to_timestamp(last_ns / 1e9) AT TIME ZONE 'UTC';
    child text;
    made integer := 0;
BEGIN
    IF parent NOT IN ('interactions', 'tool_calls', 'signals') THEN
        RAISE EXCEPTION 'qbtc.% has no partitions', parent;
    END IF;
    month := greatest(month, timestamp '2015-01-01');
    last := least(last, (now() AT TIME ZONE 'UTC') + interval '13 months');
    PERFORM pg_advisory_xact_lock(hashtext('qbtc.make_partitions'));
    WHILE month <= last LOOP
        child := parent || to_char(month, '_YYYY_MM');
        IF to_regclass('qbtc.' || child) IS NULL THEN
            BEGIN
                EXECUTE format(
                    'CREATE TABLE qbtc.%I PARTITION OF qbtc.%I FOR VALUES FROM (%s) TO (%s)',
                    child,
                    parent,
                    extract(epoch FROM month)::bigint * 1000000000,
                    extract(epoch FROM month + interval '1 month')::bigint * 1000000000
                );
                EXECUTE format('ALTER TABLE qbtc.%I ENABLE ROW LEVEL SECURITY', child);
                EXECUTE format('ALTER TABLE qbtc.%I FORCE ROW LEVEL SECURITY', child);
                made := made + 1;
            EXCEPTION WHEN check_violation THEN
                NULL;
            END;
        END IF;
        month := month + interval '1 month';
    END LOOP;
    RETURN made;
END
$$;
REVOKE ALL ON FUNCTION qbtc.make_partitions(text, bigint, bigint) FROM PUBLIC;

-- Lets a role write and read records: everything a node, gateway or worker does. What only the owner
-- does: migrations, and forgetting what is old.
CREATE FUNCTION qbtc.allow(who name)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    one name;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA qbtc TO %I', who);
    FOR one IN
        SELECT c.relname FROM pg_class c
        WHERE c.relnamespace = 'qbtc'::regnamespace AND c.relkind IN ('r', 'p')
            AND NOT c.relispartition
    LOOP
        EXECUTE format('DROP POLICY IF EXISTS %I ON qbtc.%I', 'allow_' || who, one);
        IF one = 'migrations' THEN
            EXECUTE format('GRANT SELECT ON qbtc.%I TO %I', one, who);
            EXECUTE format(
                'CREATE POLICY %I ON qbtc.%I FOR SELECT TO %I USING (true)',
                'allow_' || who, one, who
            );
            CONTINUE;
        END IF;
        EXECUTE format('GRANT SELECT, INSERT ON qbtc.%I TO %I', one, who);
        IF one IN ('orders', 'signals', 'outbox') THEN
            EXECUTE format('GRANT UPDATE ON qbtc.%I TO %I', one, who);
        END IF;
        EXECUTE format(
            'CREATE POLICY %I ON qbtc.%I TO %I USING (true) WITH CHECK (true)',
            'allow_' || who, one, who
        );
    END LOOP;
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION qbtc.make_partitions(text, bigint, bigint) TO %I', who
    );
END
$$;
REVOKE ALL ON FUNCTION qbtc.allow(name) FROM PUBLIC;

-- Supabase's role of servers. Its anon and authenticated get nothing.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'service_role') THEN
        PERFORM qbtc.allow('service_role');
    END IF;
END
$$;
