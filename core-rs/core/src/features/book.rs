//! The depth band: how much size rests within a few basis points behind each touch.
//!
//! One ring of [`RING_TICKS`] price ticks per side, tagged, so that a level is found without a
//! search and the window follows the market without copying. The sum over the band is kept up to
//! date: a level change costs one slot, a moved touch costs the ticks it moved by (at most one band).
//! Sizes are whole increments, so the sums are exact. Levels further than half a ring from the touch
//! are ignored and counted; a level that is pushed out by the moving window is forgotten.

use super::Side;

/// Ticks per ring, a power of two.
pub const RING_TICKS: usize = 1 << 15;
/// Widest band, in ticks; where the tick is so small that the band would be wider, this is the band.
pub const BAND_TICKS_MAX: i64 = 4096;
const HALF_RING: i64 = RING_TICKS as i64 / 2;
const MASK: i64 = RING_TICKS as i64 - 1;
/// Positions lie within ±2^40, so a generation above bit 44 keeps the keys of two books apart.
const GENERATION_SHIFT: u32 = 44;
const GENERATIONS_MAX: i64 = 1 << 18;

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Position plus generation; a slot with another key is empty.
    key: i64,
    /// Size in increments.
    size: f64,
}

/// Before the first level and quote: behind every position.
const NO_TOUCH: i64 = 1 << 42;
const EMPTY: Slot = Slot { key: i64::MIN, size: 0.0 };

/// One side. Positions grow away from the market: price ticks for asks, negated ticks for bids.
#[derive(Debug, Clone)]
struct Half {
    slots: Box<[Slot]>, // (RING_TICKS,)
    generation: i64,
    /// Position of the touch; before the first quote, of the best level seen.
    touch: i64,
    /// The band is `touch + 1 ..= touch + width`.
    width: i64,
    band: f64,
    /// The touch comes from quotes, no longer from the levels themselves.
    quoted: bool,
}

impl Half {
    fn new() -> Self {
        Self {
            slots: vec![EMPTY; RING_TICKS].into_boxed_slice(),
            generation: 0,
            touch: NO_TOUCH,
            width: 0,
            band: 0.0,
            quoted: false,
        }
    }

    #[inline]
    fn key(&self, position: i64) -> i64 {
        position + (self.generation << GENERATION_SHIFT)
    }

    #[inline]
    fn size_at(&self, position: i64) -> f64 {
        let slot = self.slots[(position & MASK) as usize];
        if slot.key == self.key(position) { slot.size } else { 0.0 }
    }

    /// Sets a level; false where it lies outside the window.
    #[inline]
    fn set(&mut self, position: i64, size: f64) -> bool {
        if !self.quoted {
            self.touch = self.touch.min(position);
        }
        let behind = position - self.touch;
        if !(-HALF_RING..HALF_RING).contains(&behind) {
            return false;
        }
        let key = self.key(position);
        let slot = &mut self.slots[(position & MASK) as usize];
        let before = if slot.key == key { slot.size } else { 0.0 };
        *slot = Slot { key, size };
        if (behind - 1).cast_unsigned() < self.width.cast_unsigned() {
            self.band += size - before;
        }
        true
    }

    /// Follows the quotes: the band now starts one tick behind `touch` and is `width` ticks wide.
    #[inline]
    fn follow(&mut self, touch: i64, width: i64) {
        if touch == self.touch && width == self.width {
            return;
        }
        self.move_band(touch, width);
    }

    fn move_band(&mut self, touch: i64, width: i64) {
        let (first, end) = (self.touch + 1, self.touch + 1 + self.width);
        let (new_first, new_end) = (touch + 1, touch + 1 + width);
        (self.touch, self.width, self.quoted) = (touch, width, true);
        if (new_first - first).abs() + (new_end - end).abs() >= width {
            self.band = self.sum(new_first, new_end);
            return;
        }
        self.band += self.sum(new_first, first) - self.sum(first, new_first);
        self.band += self.sum(end, new_end) - self.sum(new_end, end);
    }

    /// Size resting at `first..end`; 0 for an empty range.
    fn sum(&self, first: i64, end: i64) -> f64 {
        (first..end).map(|position| self.size_at(position)).sum()
    }

    fn clear(&mut self) {
        self.band = 0.0;
        self.generation += 1;
        if self.generation == GENERATIONS_MAX {
            self.generation = 0;
            self.slots.fill(EMPTY);
        }
    }
}

/// Both sides of the depth band.
#[derive(Debug, Clone)]
pub struct Book {
    bid: Half,
    ask: Half,
    far: u64,
}

impl Book {
    /// Allocates both rings.
    pub fn new() -> Self {
        Self { bid: Half::new(), ask: Half::new(), far: 0 }
    }

    /// Sets the size (whole increments) resting at a price (whole ticks); 0 removes the level.
    #[inline]
    pub fn set(&mut self, side: Side, ticks: f64, size: f64) {
        let kept = match side {
            Side::Bid => self.bid.set(-(ticks as i64), size),
            Side::Ask => self.ask.set(ticks as i64, size),
        };
        self.far += u64::from(!kept);
    }

    /// Follows the quotes; the band is `width` ticks behind each touch.
    #[inline]
    pub fn follow(&mut self, bid_ticks: f64, ask_ticks: f64, width: i64) {
        self.bid.follow(-(bid_ticks as i64), width);
        self.ask.follow(ask_ticks as i64, width);
    }

    /// Forgets every level.
    pub fn clear(&mut self) {
        self.bid.clear();
        self.ask.clear();
    }

    /// Size behind the touches, (bid, ask), in increments.
    #[inline]
    pub fn bands(&self) -> (f64, f64) {
        (self.bid.band, self.ask.band)
    }

    /// Level changes ignored because they lay too far from the market.
    pub fn far(&self) -> u64 {
        self.far
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use std::collections::HashMap;

    #[test]
    fn the_band_equals_a_sum_over_a_plain_map() {
        let mut rng = rand_pcg::Pcg64::seed_from_u64(5);
        let (mut book, mut bids, mut asks) = (Book::new(), HashMap::new(), HashMap::new());
        let mut bid = 600_000_i64;
        for step in 0..200_000 {
            let side = if rng.random_bool(0.5) { Side::Bid } else { Side::Ask };
            let ticks = bid + rng.random_range(-400..400);
            let size = f64::from(rng.random_range(0..5_u8));
            book.set(side, ticks as f64, size);
            match side {
                Side::Bid => bids.insert(ticks, size),
                Side::Ask => asks.insert(ticks, size),
            };
            if step % 7 == 0 {
                bid += if step % 7000 == 0 { 900 } else { rng.random_range(-3..=3) };
                let (ask, width) = (bid + rng.random_range(1..4), 150 + rng.random_range(0..2));
                book.follow(bid as f64, ask as f64, width);
                let want_bid: f64 =
                    (bid - width..bid).map(|t| bids.get(&t).copied().unwrap_or(0.0)).sum();
                let want_ask: f64 =
                    (ask + 1..=ask + width).map(|t| asks.get(&t).copied().unwrap_or(0.0)).sum();
                assert_eq!(book.bands(), (want_bid, want_ask), "step {step}");
            }
            if step % 50_000 == 49_999 {
                book.clear();
                bids.clear();
                asks.clear();
            }
        }
        assert_eq!(book.far(), 0);
    }

    #[test]
    fn a_cleared_level_stays_away_when_generations_begin_anew() {
        let mut book = Book::new();
        book.follow(600_000.0, 600_001.0, 100);
        book.set(Side::Bid, 599_990.0, 5.0);
        for _ in 0..GENERATIONS_MAX {
            book.clear();
        }
        assert_eq!(book.ask.generation, 0);
        book.follow(600_150.0, 600_151.0, 100);
        book.follow(600_000.0, 600_001.0, 100);
        assert_eq!(book.bands(), (0.0, 0.0));
    }

    #[test]
    fn levels_far_from_the_market_are_ignored_and_counted() {
        let mut book = Book::new();
        book.follow(600_000.0, 600_001.0, 100);
        book.set(Side::Bid, 10_000.0, 600.0);
        book.set(Side::Ask, 599_990.0, 5.0);
        book.set(Side::Ask, 600_050.0, 5.0);
        assert_eq!(book.far(), 1);
        assert_eq!(book.bands(), (0.0, 5.0));
    }
}
