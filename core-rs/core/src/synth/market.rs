//! The simulation loop: which flow acts next (Ogata's thinning) and what it does to the book.

use super::book::{Book, DEPTH_TICKS, LEVEL_LOTS_MAX, SPREAD_TICKS_MAX, Side};
use super::draw::{Draw, Stream, exp};
use super::events::{Events, Grid, Recorder};
use super::hawkes::{CANCEL, FLOWS, Hawkes, LIMIT, MARKET, flow};
use super::latent::{Latent, STEP_NS, STEP_S};
use super::{EVENTS_MAX, SimConfig};
use crate::{Error, Result};

/// Simulated before the first row, so that the book has its stationary shape.
const BURN_IN_STEPS: u64 = 1_000;

// The calibration (docs/synthetic-market.md says to what). Rates are 1/s, sizes are lots, and
// [calm, busy] are the two regimes.
const BASE_RATE: [f64; 3] = [7.2, 16.0, 10.5]; // market, limit, cancel, each direction
const REGIME_RATE: [f64; 2] = [0.65, 2.2];
const REGIME_JUMP: [f64; 2] = [0.8, 1.6];
const DEEP_RATE: f64 = 900.0; // each side; the ones that change nothing leave no row
const PULL_RATE: f64 = 0.35; // makers pull a whole best queue, each side
const CLOSE_RATE: f64 = 350.0; // while the spread is wider than a tick
/// Log tilt of the baselines by one unit of signal: market, limit, cancel.
const TILT: [f64; 3] = [0.12, 0.35, 0.25];
const PULL_TILT: f64 = 0.2;
/// The same for the size of a fresh queue: makers who know are bold on the safe side.
const FRESH_TILT: f64 = 0.6;
/// Market orders lean on the thin queue: relative change at full imbalance.
const LEAN: f64 = 0.6;
/// The same for makers who pull the thin queue.
const PULL_LEAN: f64 = 0.9;
/// The queue that limit and cancel flows balance around.
const QUEUE_LOTS: f64 = 2_800.0;
const TRADE_LOTS: (f64, f64) = (15.0, 2.1); // median, log sigma
const ORDER_LOTS: (f64, f64) = (80.0, 1.35);
const FRESH_LOTS: (f64, f64) = (380.0, 2.0);
const DEEP_LOTS: (f64, f64) = (60.0, 1.5);
/// Distance that makers retreat after the best queue is gone, at a price of 600 000 ticks.
const JUMP_TICKS: (f64, f64) = (9.2, 1.45);
const JUMP_TICKS_MAX: i64 = 400;
const JUMP_REFERENCE_TICKS: f64 = 600_000.0;
/// Chance that the other side follows a retreat (else the retreated side comes back).
const FOLLOW: f64 = 0.75;
const FOLLOW_TILT: f64 = 0.03;
const CLOSE_FULLY: f64 = 0.85;
const AT_TOUCH: f64 = 0.75;
const NEAR_TICKS_MEAN: f64 = 6.0;
const SWEEP_LEVELS_MAX: usize = 8;
const SWEEP_REACH_TICKS: i64 = 40;
/// Tilts stop growing here, so that a rare signal cannot run away with the market.
const SIGNAL_MAX: f64 = 3.0;

pub struct Market {
    draw: Draw,
    latent: Latent,
    hawkes: Hawkes,
    book: Book,
    out: Recorder,
    edge: f64,
    jump_scale: f64,
    /// Which side lost its best queue last.
    retreated: Side,
    top: [i64; 4],
    /// Baselines with regime and signal, 1/s, renewed every step of the latent clock.
    base: [f64; FLOWS],
    pull: [f64; 2],  // of the bid, of the ask
    fresh: [f64; 2], // relative size of fresh queues
    deep: f64,       // each side
    /// Dependence on the queues, renewed when the top changes.
    factor: [f64; FLOWS],
    pull_factor: [f64; 2],
}

impl Market {
    pub fn new(config: &SimConfig, start: i64, price: Grid, size: Grid) -> Self {
        let rows = (config.duration_s * 1_600.0) as usize + 4_096;
        let mut market = Self {
            draw: Draw::new(config.seed, Stream::Flow),
            latent: Latent::new(Draw::new(config.seed, Stream::Latent)),
            hawkes: Hawkes::new(),
            book: Book::new(start, FRESH_LOTS.0 as i64),
            out: Recorder::new(price, size, rows),
            edge: config.edge,
            jump_scale: start as f64 / JUMP_REFERENCE_TICKS,
            retreated: Side::Bid,
            top: [0; 4],
            base: [0.0; FLOWS],
            pull: [0.0; 2],
            fresh: [1.0; 2],
            deep: 0.0,
            factor: [1.0; FLOWS],
            pull_factor: [1.0; 2],
        };
        market.publish();
        market
    }

    pub fn run(mut self, config: &SimConfig) -> Result<Events> {
        for _ in 0..BURN_IN_STEPS {
            self.step(0, STEP_S);
        }
        self.out.enabled = true;
        self.out.ts = config.start_ns;
        self.book.snapshot(&mut self.out);
        self.out.quote(self.top, self.latent.signal);

        let mut begin_ns = config.start_ns;
        let mut left_s = config.duration_s;
        while left_s > 0.0 {
            self.check_limits(config.duration_s - left_s)?;
            self.step(begin_ns, STEP_S.min(left_s));
            begin_ns += STEP_NS;
            left_s -= STEP_S;
        }
        Ok(self.out.events)
    }

    fn check_limits(&self, done_s: f64) -> Result<()> {
        if self.out.len() > EVENTS_MAX {
            let reason = format!("{EVENTS_MAX} rows reached after {done_s:.0} s; ask for less");
            return Err(Error::input("duration_s", reason));
        }
        if self.top[0] < 2 * DEPTH_TICKS {
            let reason = format!("fell near zero after {done_s:.0} s; start higher");
            return Err(Error::input("price", reason));
        }
        Ok(())
    }

    /// One step of the latent clock: latents first, then order flow for `length_s`.
    fn step(&mut self, begin_ns: i64, length_s: f64) {
        self.latent.step();
        self.renew_baselines();
        let mut t = 0.0;
        loop {
            let bound = self.total_rate();
            let wait = self.draw.exponential() / bound;
            if t + wait >= length_s {
                self.hawkes.decay(length_s - t);
                return;
            }
            t += wait;
            self.hawkes.decay(wait);
            self.out.ts = begin_ns + (t * 1e9) as i64;
            let u = self.draw.uniform() * bound;
            self.act(u);
        }
    }

    fn renew_baselines(&mut self) {
        let rate = REGIME_RATE[self.latent.regime];
        let x = self.edge * self.latent.signal.clamp(-SIGNAL_MAX, SIGNAL_MAX);
        for kind in [MARKET, LIMIT, CANCEL] {
            let tilt = exp(TILT[kind] * x);
            self.base[flow(kind, 0)] = BASE_RATE[kind] * rate * tilt;
            self.base[flow(kind, 1)] = BASE_RATE[kind] * rate / tilt;
        }
        let tilt = exp(PULL_TILT * x);
        self.pull = [PULL_RATE * rate / tilt, PULL_RATE * rate * tilt];
        let tilt = exp(FRESH_TILT * x);
        self.fresh = [tilt, 1.0 / tilt];
        self.deep = DEEP_RATE * rate;
    }

    fn rate(&self, flow: usize) -> f64 {
        (self.base[flow] + self.hawkes.excitation(flow)) * self.factor[flow]
    }

    fn pull_rate(&self, side: Side) -> f64 {
        self.pull[side as usize] * self.pull_factor[side as usize]
    }

    fn close_rate(&self) -> f64 {
        if self.book.spread() > 1 { CLOSE_RATE } else { 0.0 }
    }

    /// 1/s. Between events the excitations only decay, so this bounds the rate until the next.
    fn total_rate(&self) -> f64 {
        let flows: f64 = (0..FLOWS).map(|f| self.rate(f)).sum();
        flows
            + self.pull_rate(Side::Bid)
            + self.pull_rate(Side::Ask)
            + 2.0 * self.deep
            + self.close_rate()
    }

    /// Picks the event at `u` of the stacked rates and carries it out; above them all, the
    /// candidate is thinned away.
    fn act(&mut self, mut u: f64) {
        for side in [Side::Bid, Side::Ask] {
            if u < self.deep {
                return self.deep_change(side);
            }
            u -= self.deep;
        }
        if u < self.close_rate() {
            self.close_spread();
            return self.publish();
        }
        u -= self.close_rate();
        for side in [Side::Bid, Side::Ask] {
            if u < self.pull_rate(side) {
                self.retreat(side, self.book.best(side));
                return self.publish();
            }
            u -= self.pull_rate(side);
        }
        for f in 0..FLOWS {
            let rate = self.rate(f);
            if u < rate {
                self.hawkes.excite(f);
                self.order(f);
                return self.publish();
            }
            u -= rate;
        }
    }

    fn order(&mut self, f: usize) {
        let bullish = f & 1 == 0;
        let (helped, hurt) = if bullish { (Side::Bid, Side::Ask) } else { (Side::Ask, Side::Bid) };
        match f / 2 {
            MARKET => self.market_order(hurt),
            LIMIT => self.limit_order(helped),
            _ => self.cancel_order(hurt),
        }
    }

    /// Fills against the `resting` side, best price first; what finds no level nearby is dropped.
    fn market_order(&mut self, resting: Side) {
        let mut rest = self.draw.log_normal(TRADE_LOTS.0, TRADE_LOTS.1, LEVEL_LOTS_MAX);
        let mut price = self.book.best(resting);
        for _ in 0..SWEEP_LEVELS_MAX {
            let queue = self.book.lots_at(price);
            let fill = rest.min(queue);
            rest -= fill;
            self.out.trade(resting, price, fill);
            self.book.set(resting, price, queue - fill, &mut self.out);
            if fill < queue {
                return self.book.move_best(resting, price);
            }
            match self.book.next_occupied(resting, price, self.sweep_reach(resting, price)) {
                Some(next) if rest > 0 => price = next,
                _ => break,
            }
        }
        self.retreat(resting, price);
    }

    /// How far a market order may walk without passing the widest spread.
    fn sweep_reach(&self, resting: Side, price: i64) -> i64 {
        let gap = (price - self.book.best(resting.other())).abs();
        SWEEP_REACH_TICKS.min(SPREAD_TICKS_MAX - gap)
    }

    fn limit_order(&mut self, side: Side) {
        let price = self.touch_or_near(side);
        let lots = self.draw.log_normal(ORDER_LOTS.0, ORDER_LOTS.1, LEVEL_LOTS_MAX);
        self.book.set(side, price, self.book.lots_at(price) + lots, &mut self.out);
    }

    fn cancel_order(&mut self, side: Side) {
        let price = self.touch_or_near(side);
        let lots = self.draw.log_normal(ORDER_LOTS.0, ORDER_LOTS.1, LEVEL_LOTS_MAX);
        let queue = self.book.lots_at(price);
        if lots >= queue && price == self.book.best(side) {
            self.retreat(side, price);
        } else {
            self.book.set(side, price, (queue - lots).max(0), &mut self.out);
        }
    }

    fn touch_or_near(&mut self, side: Side) -> i64 {
        let best = self.book.best(side);
        if self.draw.uniform() < AT_TOUCH {
            return best;
        }
        best + side.away() * self.draw.geometric(NEAR_TICKS_MEAN, DEPTH_TICKS)
    }

    /// Background changes away from the touch: levels appear, change and vanish.
    fn deep_change(&mut self, side: Side) {
        let tick = self.book.best(side) + side.away() * (1 + self.draw.below(DEPTH_TICKS));
        let occupied = self.book.lots_at(tick) > 0;
        let u = self.draw.uniform();
        let lots = if (occupied && u < 0.5) || (!occupied && u > 0.3) {
            0
        } else {
            self.draw.log_normal(DEEP_LOTS.0, DEEP_LOTS.1, LEVEL_LOTS_MAX)
        };
        self.book.set(side, tick, lots, &mut self.out);
    }

    /// The best queue at `price` is gone (or is pulled now): makers requote some ticks away.
    fn retreat(&mut self, side: Side, price: i64) {
        let scale = self.jump_scale * REGIME_JUMP[self.latent.regime];
        let wanted = self.draw.log_normal(JUMP_TICKS.0 * scale, JUMP_TICKS.1, JUMP_TICKS_MAX);
        let gap = (price - self.book.best(side.other())).abs();
        let jump = wanted.min(SPREAD_TICKS_MAX - gap);
        let lots = self.fresh_lots(side);
        self.book.retreat(side, price + side.away() * jump, lots, &mut self.out);
        self.retreated = side;
    }

    /// Size of a new best queue.
    fn fresh_lots(&mut self, side: Side) -> i64 {
        let median = FRESH_LOTS.0 * self.fresh[side as usize];
        self.draw.log_normal(median, FRESH_LOTS.1, LEVEL_LOTS_MAX)
    }

    /// One side steps into the spread: mostly the one that follows the last retreat.
    fn close_spread(&mut self) {
        let up = if self.retreated == Side::Ask { 1.0 } else { -1.0 };
        let signal = self.edge * self.latent.signal.clamp(-SIGNAL_MAX, SIGNAL_MAX);
        let follow = FOLLOW + FOLLOW_TILT * up * signal;
        let follows = self.draw.uniform() < follow;
        let side = if follows { self.retreated.other() } else { self.retreated };
        let room = self.book.spread() - 1;
        let step = if self.draw.uniform() < CLOSE_FULLY { room } else { 1 + self.draw.below(room) };
        let price = self.book.best(side) - side.away() * step;
        let lots = self.fresh_lots(side);
        self.book.improve(side, price, lots, &mut self.out);
    }

    /// Writes a quote if the top of book is new, and renews what depends on it.
    fn publish(&mut self) {
        let top = self.book.top();
        if top == self.top {
            return;
        }
        self.top = top;
        self.out.quote(top, self.latent.signal);
        let queues = [top[1] as f64, top[3] as f64]; // bid, ask
        let imbalance = (queues[0] - queues[1]) / (queues[0] + queues[1]);
        self.pull_factor = [1.0 - PULL_LEAN * imbalance, 1.0 + PULL_LEAN * imbalance];
        for bearish in [0, 1] {
            let (helped, hurt) = (queues[bearish], queues[1 - bearish]);
            let sign = if bearish == 0 { 1.0 } else { -1.0 };
            self.factor[flow(MARKET, bearish)] = 1.0 + sign * LEAN * imbalance;
            self.factor[flow(LIMIT, bearish)] = 3.0 * QUEUE_LOTS / (2.0 * QUEUE_LOTS + helped);
            self.factor[flow(CANCEL, bearish)] = 3.0 * hurt / (QUEUE_LOTS + 2.0 * hurt);
        }
    }
}
