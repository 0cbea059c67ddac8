//! 26 causal features of one instrument, kept up to date by one call per market event.
//!
//! An engine is fed quotes, trades, depth changes and the quotes of a lead venue in the order in
//! which they became known, and can be read at any moment. It looks only backwards, does the same
//! bounded work for every event and allocates nothing after `new`. It does not judge: a crossed or
//! non-finite event is refused with an error that names the field.
//!
//! Units: time UNIX nanoseconds, prices quote currency, sizes base currency, returns basis points.
//! Rows are `[f32; 32]`: 26 features in the order of [`TABLE`], then zeros. NaN means missing: the
//! data source does not carry it, it is not warmed up, or it has gone silent.

mod book;
pub mod bulk;
mod engine;
mod grid;
mod leaky;
mod math;
mod table;

pub use book::{BAND_TICKS_MAX, RING_TICKS};
pub use bulk::{Columns, Row, bulk_rows};
pub use engine::{FeatureEngine, STALE_NS, Snapshot, WARM_UP_NS};
pub use grid::{OFF_GRID_TICKS_MAX, PRICE_TICKS_MAX, SIZE_STEPS_MAX};
pub use table::{FeatureInfo, NOTATION, TABLE, UpdateClass, schema_sha256};

/// Number of features.
pub const N_FEATURES: usize = 26;
/// Length of a row: two registers of 16 floats.
pub const PADDED: usize = 32;

/// Side of the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Buyers.
    Bid,
    /// Sellers.
    Ask,
}

/// The side of a trade that took liquidity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggressor {
    /// The buyer crossed the spread.
    Buy,
    /// The seller crossed the spread.
    Sell,
}

/// The grid of one instrument.
#[derive(Debug, Clone, Copy)]
pub struct FeatureConfig {
    /// Smallest price step, quote currency.
    pub price_increment: f64,
    /// Smallest size step, base currency.
    pub size_increment: f64,
}
