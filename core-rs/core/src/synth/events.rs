//! What the simulator writes: a struct of arrays in the layout of `EventColumns`.

use super::book::Side;

/// `kind` of a top-of-book quote row.
pub const QUOTE: u8 = 0;
/// `kind` of a trade row.
pub const TRADE: u8 = 1;
/// `kind` of a book level row.
pub const DEPTH: u8 = 2;
/// `kind` of a row that empties the book.
pub const DEPTH_CLEAR: u8 = 3;

/// The generated rows, all columns of equal length but `latent`, which has one entry per quote.
#[derive(Debug, Default)]
pub struct Events {
    /// UNIX nanoseconds, non-decreasing.
    pub ts: Vec<i64>,
    /// [`QUOTE`], [`TRADE`], [`DEPTH`] or [`DEPTH_CLEAR`].
    pub kind: Vec<u8>,
    /// Trade: 0 buy aggressor, 1 sell; depth: 0 bid, 1 ask; else 0.
    pub side: Vec<u8>,
    /// Quote: bid price; trade and depth: price.
    pub a: Vec<f64>,
    /// Quote: bid size; trade: size; depth: the level's new size (0 = level removed).
    pub b: Vec<f64>,
    /// Quote: ask price.
    pub c: Vec<f64>,
    /// Quote: ask size.
    pub d: Vec<f64>,
    /// The hidden signal at each quote row.
    pub latent: Vec<f32>,
}

/// A decimal grid: index to the double nearest to its decimal, so that 600001 ticks of 0.1 are
/// 60000.1 and not 60000.100000000006.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    increment: f64,
    per_unit: Option<f64>,
}

impl Grid {
    pub fn new(increment: f64) -> Self {
        let inverse = (1.0 / increment).round();
        let whole = inverse >= 1.0 && (inverse * increment - 1.0).abs() < 1e-9;
        Self { increment, per_unit: whole.then_some(inverse) }
    }

    pub fn value(self, index: i64) -> f64 {
        match self.per_unit {
            Some(n) => index as f64 / n,
            None => index as f64 * self.increment,
        }
    }
}

/// Turns ticks and lots into rows. Silent until `enabled` (the burn-in is not written).
pub struct Recorder {
    pub events: Events,
    pub enabled: bool,
    pub ts: i64,
    price: Grid,
    size: Grid,
}

impl Recorder {
    pub fn new(price: Grid, size: Grid, rows: usize) -> Self {
        let events = Events {
            ts: Vec::with_capacity(rows),
            kind: Vec::with_capacity(rows),
            side: Vec::with_capacity(rows),
            a: Vec::with_capacity(rows),
            b: Vec::with_capacity(rows),
            c: Vec::with_capacity(rows),
            d: Vec::with_capacity(rows),
            latent: Vec::with_capacity(rows / 4),
        };
        Self { events, enabled: false, ts: 0, price, size }
    }

    pub fn len(&self) -> usize {
        self.events.ts.len()
    }

    pub fn clear(&mut self) {
        self.row(DEPTH_CLEAR, 0, [0.0; 4]);
    }

    pub fn depth(&mut self, side: Side, tick: i64, lots: i64) {
        let (price, size) = (self.price.value(tick), self.size.value(lots));
        self.row(DEPTH, side as u8, [price, size, 0.0, 0.0]);
    }

    /// A fill against the resting `side`: the aggressor is on the other one.
    pub fn trade(&mut self, resting: Side, tick: i64, lots: i64) {
        let aggressor = u8::from(resting == Side::Bid);
        let (price, size) = (self.price.value(tick), self.size.value(lots));
        self.row(TRADE, aggressor, [price, size, 0.0, 0.0]);
    }

    pub fn quote(&mut self, top: [i64; 4], latent: f64) {
        let [bid, bid_lots, ask, ask_lots] = top;
        let (price, size) = (self.price, self.size);
        self.row(
            QUOTE,
            0,
            [price.value(bid), size.value(bid_lots), price.value(ask), size.value(ask_lots)],
        );
        if self.enabled {
            self.events.latent.push(latent as f32);
        }
    }

    fn row(&mut self, kind: u8, side: u8, [a, b, c, d]: [f64; 4]) {
        if !self.enabled {
            return;
        }
        let e = &mut self.events;
        e.ts.push(self.ts);
        e.kind.push(kind);
        e.side.push(side);
        e.a.push(a);
        e.b.push(b);
        e.c.push(c);
        e.d.push(d);
    }
}
