//! Leaky sums over five time scales, all decayed by one exponential.
//!
//! The time scales divide each other (30 s = 3 * 10 s = 15 * 2 s = 60 * 0.5 s = 300 * 0.1 s), so
//! four of the five factors are powers of the first. Decay happens only when something is added or
//! read, never on a depth change.

use super::math::exp_neg;

/// The longest time scale.
const LONGEST_NS: f64 = 30e9;
/// Added at every decay, so that a sum that nothing feeds ends here and not among the subnormal
/// numbers, where processors are slow.
const FLOOR: f64 = 1e-200;

/// `exp(-dt / scale)` for each time scale.
#[derive(Debug, Clone, Copy)]
pub struct Decay {
    pub s30: f64,
    pub s10: f64,
    pub s2: f64,
    pub ms500: f64,
    pub ms100: f64,
}

impl Decay {
    /// The factors for `dt_ns >= 0`.
    #[inline]
    pub fn over(dt_ns: i64) -> Self {
        let s30 = exp_neg(dt_ns as f64 * (1.0 / LONGEST_NS));
        let s10 = s30 * s30 * s30;
        let s2 = fifth_power(s10);
        let square = s2 * s2;
        let ms500 = square * square;
        Self { s30, s10, s2, ms500, ms100: fifth_power(ms500) }
    }
}

#[inline]
fn fifth_power(x: f64) -> f64 {
    let square = x * x;
    square * square * x
}

/// The sums of one time scale each, in lanes that one instruction can decay together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Leaky {
    /// 0.1 s: return, order flow, trade flow, unused.
    pub ms100: [f64; 4],
    /// 0.5 s: return, squared return, trade flow, lead return, last move, bid cancels, ask
    /// cancels, unused.
    pub ms500: [f64; 8],
    /// 2 s: order flow, moves.
    pub s2: [f64; 2],
    /// 10 s: return, squared return, trades, unused.
    pub s10: [f64; 4],
    /// 30 s: return, signed volume, volume, unused.
    pub s30: [f64; 4],
}

impl Leaky {
    /// Ages every sum.
    #[inline]
    pub fn age(&mut self, by: Decay) {
        scale(&mut self.ms100, by.ms100);
        scale(&mut self.ms500, by.ms500);
        scale(&mut self.s2, by.s2);
        scale(&mut self.s10, by.s10);
        scale(&mut self.s30, by.s30);
    }

    /// A change of the mid, basis points, not 0.
    #[inline]
    pub fn add_move(&mut self, d: f64) {
        let square = d * d;
        self.ms100[0] += d;
        self.ms500[0] += d;
        self.s10[0] += d;
        self.s30[0] += d;
        self.ms500[1] += square;
        self.s10[1] += square;
        self.ms500[4] = 1.0_f64.copysign(d);
        self.s2[1] += 1.0;
    }

    /// Order flow and cancelled sizes of one quote, logarithms of thousands of quote currency.
    #[inline]
    pub fn add_quote(&mut self, order_flow: f64, bid_cancel: f64, ask_cancel: f64) {
        self.ms100[1] += order_flow;
        self.s2[0] += order_flow;
        self.ms500[5] += bid_cancel;
        self.ms500[6] += ask_cancel;
    }

    /// One trade: its logarithm and its volume, thousands of quote currency, `sign` +1 for buys.
    #[inline]
    pub fn add_trade(&mut self, sign: f64, log: f64, volume: f64) {
        self.ms100[2] += sign * log;
        self.ms500[2] += sign * log;
        self.s10[2] += 1.0;
        self.s30[1] += sign * volume;
        self.s30[2] += volume;
    }

    /// A change of the lead mid, basis points.
    #[inline]
    pub fn add_lead_move(&mut self, d: f64) {
        self.ms500[3] += d;
    }
}

#[inline]
fn scale<const N: usize>(lanes: &mut [f64; N], factor: f64) {
    for lane in lanes {
        *lane = *lane * factor + FLOOR;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_agree_with_their_definition() {
        for dt_ns in [0, 1, 1_000, 3_000_000, 70_000_000, 900_000_000, 5_000_000_000] {
            let (decay, dt) = (Decay::over(dt_ns), dt_ns as f64 * 1e-9);
            for (factor, scale) in [
                (decay.s30, 30.0_f64),
                (decay.s10, 10.0),
                (decay.s2, 2.0),
                (decay.ms500, 0.5),
                (decay.ms100, 0.1),
            ] {
                let want = (-dt / scale).exp();
                assert!((factor - want).abs() <= 1e-12 * want, "{dt_ns} {scale}");
            }
        }
    }

    #[test]
    fn unfed_sums_never_become_subnormal() {
        let mut sums = Leaky::default();
        sums.add_move(-3.0);
        for _ in 0..100_000 {
            sums.age(Decay::over(1_000_000_000));
        }
        assert!(sums.ms100.iter().chain(&sums.s30).all(|x| x.abs() > f64::MIN_POSITIVE));
        assert!(sums.ms100[0].abs() < 1e-100);
    }
}
