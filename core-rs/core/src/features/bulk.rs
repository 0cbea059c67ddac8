//! The bulk path: whole columns of events in, one row of features per quote out, bit for bit what
//! the event path gives. Two threads share the work: one drives the engine, the caller's turns
//! snapshots into rows and hands them on (to memory, to a model).

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::{Aggressor, FeatureConfig, FeatureEngine, PADDED, Side, Snapshot};
use crate::{Error, Result};

/// Rows handed over at a time: 40 kB of rows and 80 kB of snapshots stay in the cache.
pub const CHUNK_ROWS: usize = 256;
/// Chunks in flight between the two threads.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Event kinds as they stand in [`Columns::kind`].
pub mod kind {
    /// `a, b, c, d`: bid, bid size, ask, ask size.
    pub const QUOTE: u8 = 0;
    /// `side`: 0 buy, 1 sell aggressor; `a, b`: price, size.
    pub const TRADE: u8 = 1;
    /// `side`: 0 bid, 1 ask; `a, b`: price, size (0 removes).
    pub const DEPTH: u8 = 2;
    /// All levels void.
    pub const DEPTH_CLEAR: u8 = 3;
    /// `a, c`: bid, ask of the lead venue.
    pub const LEAD_QUOTE: u8 = 4;
}

/// Events as columns of equal length, in the order in which they became known.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// UNIX nanoseconds, never decreasing.
    pub ts: &'a [i64],
    /// See [`kind`].
    pub kind: &'a [u8],
    /// See [`kind`]; 0 where unused.
    pub side: &'a [u8],
    /// See [`kind`].
    pub a: &'a [f64],
    /// See [`kind`].
    pub b: &'a [f64],
    /// See [`kind`].
    pub c: &'a [f64],
    /// See [`kind`].
    pub d: &'a [f64],
}

impl Columns<'_> {
    /// # Errors
    /// [`Error::Input`] naming the first column whose length differs from `ts`.
    pub fn check_lengths(&self) -> Result<()> {
        let n = self.ts.len();
        for (field, length) in [
            ("kind", self.kind.len()),
            ("side", self.side.len()),
            ("a", self.a.len()),
            ("b", self.b.len()),
            ("c", self.c.len()),
            ("d", self.d.len()),
        ] {
            if length != n {
                return Err(Error::input(field, format!("has {length} rows, but ts has {n}")));
            }
        }
        Ok(())
    }

    /// Number of quotes, that is of feature rows.
    pub fn n_quotes(&self) -> usize {
        self.kind.iter().map(|&k| usize::from(k == kind::QUOTE)).sum()
    }
}

/// The features at one quote.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// UNIX nanoseconds.
    pub ts_ns: i64,
    /// Mid price, quote currency.
    pub mid: f64,
    /// The engine was warm.
    pub warm: bool,
    /// Features, padded with 0; NaN where missing.
    pub features: [f32; PADDED],
}

impl From<&Snapshot> for Row {
    #[inline]
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            ts_ns: snapshot.ts_ns,
            mid: snapshot.mid,
            warm: snapshot.warm,
            features: snapshot.features(),
        }
    }
}

/// Runs all events through a fresh engine and calls `sink` with consecutive chunks of rows, in
/// order, on the calling thread.
///
/// # Errors
/// [`Error::Input`] naming field and row of the first event that is refused; `sink` may have
/// been given rows of earlier quotes by then.
pub fn bulk_rows(
    config: FeatureConfig,
    columns: Columns<'_>,
    mut sink: impl FnMut(&[Row]),
) -> Result<()> {
    columns.check_lengths()?;
    let mut engine = FeatureEngine::new(config)?;
    let (full, filled) = sync_channel(CHUNKS_IN_FLIGHT);
    let (spent, empty) = sync_channel(CHUNKS_IN_FLIGHT);
    for _ in 0..CHUNKS_IN_FLIGHT {
        let _ = spent.send(Vec::with_capacity(CHUNK_ROWS)); // Its reader is `empty`, alive here.
    }
    std::thread::scope(|scope| {
        let driver = scope.spawn(move || drive(&mut engine, columns, &empty, &full));
        let mut rows = Vec::with_capacity(CHUNK_ROWS);
        for chunk in filled {
            rows.clear();
            rows.extend(chunk.iter().map(Row::from));
            sink(&rows);
            // The driver may be done already and have hung up.
            let _ = spent.send(chunk);
        }
        driver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Feeds the engine; sends a snapshot per quote.
fn drive(
    engine: &mut FeatureEngine,
    columns: Columns<'_>,
    empty: &Receiver<Vec<Snapshot>>,
    full: &SyncSender<Vec<Snapshot>>,
) -> Result<()> {
    let Ok(mut chunk) = empty.recv() else { return Ok(()) };
    chunk.clear();
    let rows = columns.ts.iter().zip(columns.kind).zip(columns.side);
    let values = columns.a.iter().zip(columns.b).zip(columns.c).zip(columns.d);
    let mut result = Ok(());
    for (i, (((&ts, &event), &side), (((&a, &b), &c), &d))) in rows.zip(values).enumerate() {
        if let Err(error) = apply(engine, ts, event, side, [a, b, c, d]) {
            result = Err(at_row(error, i));
            break;
        }
        if event == kind::QUOTE {
            chunk.push(engine.snapshot());
            if chunk.len() == CHUNK_ROWS {
                if full.send(chunk).is_err() {
                    return Ok(()); // The sink panicked; its panic is what the caller sees.
                }
                let Ok(next) = empty.recv() else { return Ok(()) };
                chunk = next;
                chunk.clear();
            }
        }
    }
    if !chunk.is_empty() {
        let _ = full.send(chunk);
    }
    result
}

/// One event of the columns.
#[inline]
pub(crate) fn apply(
    engine: &mut FeatureEngine,
    ts: i64,
    event: u8,
    side: u8,
    [a, b, c, d]: [f64; 4],
) -> Result<()> {
    match (event, side) {
        (kind::DEPTH, 0) => engine.on_depth(ts, Side::Bid, a, b),
        (kind::DEPTH, 1) => engine.on_depth(ts, Side::Ask, a, b),
        (kind::QUOTE, 0) => engine.on_quote(ts, a, b, c, d),
        (kind::TRADE, 0) => engine.on_trade(ts, a, b, Aggressor::Buy),
        (kind::TRADE, 1) => engine.on_trade(ts, a, b, Aggressor::Sell),
        (kind::DEPTH_CLEAR, 0) => engine.on_depth_clear(ts),
        (kind::LEAD_QUOTE, 0) => engine.on_lead_quote(ts, a, c),
        (0..=kind::LEAD_QUOTE, _) => {
            Err(Error::input("side", format!("{side} does not exist for events of kind {event}")))
        }
        _ => Err(Error::input("kind", format!("must be 0 to 4, got {event}"))),
    }
}

/// Adds the row to an error of an event.
#[cold]
pub(crate) fn at_row(error: Error, row: usize) -> Error {
    match error {
        Error::Input { field, reason } => {
            Error::Input { field, reason: format!("{reason} (row {row})") }
        }
        other => other,
    }
}
