//! The timing loops of the benchmarks: kernels as a market meets them, one event after the other
//! on one thread, with no Python between the calls. Only `make bench` calls them.

use std::{hint::black_box, time::Instant};

use crate::{
    Error, Result,
    features::{
        Columns, FeatureConfig, FeatureEngine, PADDED,
        bulk::{apply, kind},
    },
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

/// Nanoseconds since `start` for each of `calls`.
fn ns_per(start: Instant, calls: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / calls as f64
}
