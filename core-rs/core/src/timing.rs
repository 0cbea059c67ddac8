//! The timing loops of the benchmarks: kernels as a market meets them, one event after the other
//! on one thread, with no Python between the calls. Only `make bench` calls them.

use std::{hint::black_box, sync::Arc, time::Instant};

use crate::{
    Error, Result,
    features::{
        Columns, FeatureConfig, FeatureEngine, PADDED,
        bulk::{apply, kind},
    },
    signal::{Model, Row, Session},
};

/// Feeds the events to a fresh engine, in order, and returns ns per event of each full block of
/// `block_events`; with `read`, the features are also written out at every quote.
///
/// # Errors
/// [`Error::Input`] for columns of unequal length, an empty block, or an event that is refused.
pub fn events(
    config: FeatureConfig,
    columns: Columns<'_>,
    block_events: usize,
    read: bool,
) -> Result<Vec<f64>> {
    columns.check_lengths()?;
    if block_events == 0 {
        return Err(Error::input("block_events", "must be at least 1"));
    }
    let mut engine = FeatureEngine::new(config)?;
    let mut row = [0.0; PADDED];
    let blocks = columns.ts.len() / block_events;
    let mut ns = Vec::with_capacity(blocks);
    for block in 0..blocks {
        let start = Instant::now();
        for i in block * block_events..(block + 1) * block_events {
            let values = [columns.a[i], columns.b[i], columns.c[i], columns.d[i]];
            apply(&mut engine, columns.ts[i], columns.kind[i], columns.side[i], values)?;
            if read && columns.kind[i] == kind::QUOTE {
                engine.write(&mut row);
                black_box(&row);
            }
        }
        ns.push(ns_per(start, block_events));
    }
    Ok(ns)
}

/// Infers `blocks` blocks of `block_calls` rows each, going round in `rows`, and returns ns per
/// call of each block.
///
/// Each call waits for the one before: zero times its result is added to the first feature. The
/// processor would else overlap neighbouring calls, which a market event never lets it do.
///
/// # Errors
/// [`Error::Input`] for no rows or an empty block.
pub fn inference(
    model: Arc<Model>,
    rows: &[Row],
    blocks: usize,
    block_calls: usize,
) -> Result<Vec<f64>> {
    if rows.is_empty() || block_calls == 0 {
        return Err(Error::input("rows", "needs at least one row and one call per block"));
    }
    let mut session = Session::new(model);
    let mut next = rows.iter().cycle();
    let mut ns = Vec::with_capacity(blocks);
    let mut last = 0.0;
    for _ in 0..blocks {
        let start = Instant::now();
        for row in next.by_ref().take(block_calls) {
            session.x = *row;
            session.x[0] += 0.0 * last;
            last = session.infer().up;
        }
        ns.push(ns_per(start, block_calls));
    }
    black_box(last);
    Ok(ns)
}

/// Nanoseconds since `start` for each of `calls`.
fn ns_per(start: Instant, calls: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / calls as f64
}
