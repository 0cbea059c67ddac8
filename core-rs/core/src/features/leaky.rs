//! Leaky sums over four time scales, all decayed by one exponential.
//!
//! The time scales divide each other (10 s = 5 * 2 s = 20 * 0.5 s = 100 * 0.1 s), so three of the
//! four factors are powers of the first. Decay happens only when something is added or read.

use super::math::exp_neg;

/// The longest time scale.
const LONGEST_NS: f64 = 10e9;
/// Added at every decay, so that a sum that nothing feeds ends here and not among the subnormal
/// numbers, where processors are slow.
const FLOOR: f64 = 1e-200;

/// `exp(-dt / scale)` for each time scale.
#[derive(Debug, Clone, Copy)]
pub struct Decay {
    pub s10: f64,
    pub s2: f64,
    pub ms500: f64,
    pub ms100: f64,
}

impl Decay {
    /// The factors for `dt_ns >= 0`.
    #[inline]
    pub fn over(dt_ns: i64) -> Self {
        let s10 = exp_neg(dt_ns as f64 * (1.0 / LONGEST_NS));
        let s2 = fifth_power(s10);
        let square = s2 * s2;
        let ms500 = square * square;
        Self { s10, s2, ms500, ms100: fifth_power(ms500) }
    }
}

#[inline]
fn fifth_power(x: f64) -> f64 {
    let square = x * x;
    square * square * x
}

/// The sums, grouped by time scale. Order inside a group: return, order flow, trade flow, ...
#[derive(Debug, Clone, Copy, Default)]
pub struct Leaky {
    /// 0.1 s: return, order flow, trade flow, unused.
    pub ms100: [f64; 4],
    /// 0.5 s: return, order flow, trade flow, squared return, lead return, last move.
    pub ms500: [f64; 6],
    /// 2 s: return, order flow, trade flow, absolute return, moves, trades.
    pub s2: [f64; 6],
    /// 10 s: return, squared return.
    pub s10: [f64; 2],
}

impl Leaky {
    /// Ages every sum.
    #[inline]
    pub fn age(&mut self, by: Decay) {
        scale(&mut self.ms100, by.ms100);
        scale(&mut self.ms500, by.ms500);
        scale(&mut self.s2, by.s2);
        scale(&mut self.s10, by.s10);
    }

    /// A change of the mid, basis points, not 0.
    #[inline]
    pub fn add_move(&mut self, d: f64) {
        let square = d * d;
        self.ms100[0] += d;
        self.ms500[0] += d;
        self.s2[0] += d;
        self.s10[0] += d;
        self.ms500[3] += square;
        self.s10[1] += square;
        self.s2[3] += d.abs();
        self.s2[4] += 1.0;
        self.ms500[5] = 1.0_f64.copysign(d);
    }

    /// The order flow of one quote.
    #[inline]
    pub fn add_order_flow(&mut self, flow: f64) {
        self.ms100[1] += flow;
        self.ms500[1] += flow;
        self.s2[1] += flow;
    }

    /// One trade.
    #[inline]
    pub fn add_trade(&mut self, flow: f64) {
        self.ms100[2] += flow;
        self.ms500[2] += flow;
        self.s2[2] += flow;
        self.s2[5] += 1.0;
    }

    /// A change of the lead mid, basis points.
    #[inline]
    pub fn add_lead_move(&mut self, d: f64) {
        self.ms500[4] += d;
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
            for (factor, scale) in
                [(decay.s10, 10.0_f64), (decay.s2, 2.0), (decay.ms500, 0.5), (decay.ms100, 0.1)]
            {
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
        assert!(sums.ms100.iter().chain(&sums.s10).all(|x| x.abs() > f64::MIN_POSITIVE));
        assert!(sums.ms100[0].abs() < 1e-100);
    }
}
