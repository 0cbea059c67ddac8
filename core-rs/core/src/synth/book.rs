//! The book: lots at each price tick in a ring, valid from `DEPTH_TICKS` below the best bid to
//! `DEPTH_TICKS` above the best ask. Levels further away are not kept.

use super::events::Recorder;

/// Levels further than this from their side's best price are removed.
pub const DEPTH_TICKS: i64 = 1_000;
/// The spread never gets wider.
pub const SPREAD_TICKS_MAX: i64 = 500;
/// No level holds more.
pub const LEVEL_LOTS_MAX: i64 = 1_000_000;

const RING: usize = 4_096;
const _: () = assert!(2 * DEPTH_TICKS + SPREAD_TICKS_MAX < RING as i64);

/// A side of the book; the numbers are those of the `side` column of depth rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Bid = 0,
    Ask = 1,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Bid => Self::Ask,
            Self::Ask => Self::Bid,
        }
    }

    /// Direction of prices further from the middle: down for bids, up for asks.
    pub fn away(self) -> i64 {
        match self {
            Self::Bid => -1,
            Self::Ask => 1,
        }
    }
}

/// Lots by tick. The best price of each side always holds something.
pub struct Book {
    lots: Vec<i64>, // (RING,), tick & (RING - 1)
    best: [i64; 2], // ticks: bid, ask
}

impl Book {
    /// One level on each side of `mid`.
    pub fn new(mid: i64, lots: i64) -> Self {
        let mut book = Self { lots: vec![0; RING], best: [mid, mid + 1] };
        *book.cell(mid) = lots;
        *book.cell(mid + 1) = lots;
        book
    }

    fn cell(&mut self, tick: i64) -> &mut i64 {
        &mut self.lots[tick as usize & (RING - 1)]
    }

    pub fn best(&self, side: Side) -> i64 {
        self.best[side as usize]
    }

    pub fn spread(&self) -> i64 {
        self.best[1] - self.best[0]
    }

    pub fn lots_at(&self, tick: i64) -> i64 {
        self.lots[tick as usize & (RING - 1)]
    }

    /// `[bid, bid lots, ask, ask lots]`.
    pub fn top(&self) -> [i64; 4] {
        let [bid, ask] = self.best;
        [bid, self.lots_at(bid), ask, self.lots_at(ask)]
    }

    /// Sets a level at or behind the best price; the caller keeps the best price occupied.
    pub fn set(&mut self, side: Side, tick: i64, lots: i64, out: &mut Recorder) {
        let lots = lots.min(LEVEL_LOTS_MAX);
        let cell = self.cell(tick);
        if *cell != lots {
            *cell = lots;
            out.depth(side, tick, lots);
        }
    }

    /// The best price is now `tick`, the levels before it having been emptied.
    pub fn move_best(&mut self, side: Side, tick: i64) {
        debug_assert!(self.lots_at(tick) > 0);
        self.best[side as usize] = tick;
    }

    /// A new best price inside the spread; the far end of the side moves along.
    pub fn improve(&mut self, side: Side, tick: i64, lots: i64, out: &mut Recorder) {
        debug_assert!(tick > self.best[0] && tick < self.best[1]);
        let away = side.away();
        let old_end = self.best(side) + away * DEPTH_TICKS;
        let new_end = tick + away * DEPTH_TICKS;
        self.set(side, tick, lots, out);
        self.best[side as usize] = tick;
        let mut far = new_end + away;
        while (old_end - far) * away >= 0 {
            self.set(side, far, 0, out);
            far += away;
        }
    }

    /// The best price retreats to `tick`: every level on the way is removed, and `lots` are
    /// placed at `tick` if it is empty.
    pub fn retreat(&mut self, side: Side, tick: i64, lots: i64, out: &mut Recorder) {
        let away = side.away();
        let mut p = self.best(side);
        while (tick - p) * away > 0 {
            self.set(side, p, 0, out);
            p += away;
        }
        if self.lots_at(tick) == 0 {
            self.set(side, tick, lots, out);
        }
        self.best[side as usize] = tick;
    }

    /// The next occupied level from `tick` (exclusive) within `reach` ticks, away from the middle.
    pub fn next_occupied(&self, side: Side, tick: i64, reach: i64) -> Option<i64> {
        let away = side.away();
        (1..=reach).map(|k| tick + away * k).find(|&p| self.lots_at(p) > 0)
    }

    /// Writes an empty book and then all its levels, best first, bids before asks.
    pub fn snapshot(&self, out: &mut Recorder) {
        out.clear();
        for side in [Side::Bid, Side::Ask] {
            for k in 0..=DEPTH_TICKS {
                let tick = self.best(side) + side.away() * k;
                let lots = self.lots_at(tick);
                if lots > 0 {
                    out.depth(side, tick, lots);
                }
            }
        }
    }
}
