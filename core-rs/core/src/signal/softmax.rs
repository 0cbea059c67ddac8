//! Softmax of three logits with a polynomial exponential, inlined into every kernel.

use super::PerClass;

/// Below this, `exp` is 0 at single precision beside the largest term, which is 1.
const EXPONENT_MIN: f32 = -87.0;
/// Adding and subtracting 1.5 * 2^23 rounds a small f32 to the nearest integer.
const ROUND: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `a * b + c`, fused where the instruction exists.
#[inline(always)]
pub fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// The larger one; plain `maxss`, which the standard's rule for NaN is not. There is none here.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// `exp(x)` for `x <= 0`, relative error below 2e-7 (Cephes `expf`: reduction to
/// |r| <= ln2 / 2 with a two-part ln 2, then a degree-6 polynomial).
#[inline(always)]
pub fn exp_negative<const FMA: bool>(x: f32) -> f32 {
    let x = larger(x, EXPONENT_MIN);
    let shifted = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FMA>(n, -LN2_HIGH, x);
    let r = multiply_add::<FMA>(n, -LN2_LOW, r);
    // Estrin's scheme: three dependent steps instead of Horner's six.
    let r2 = r * r;
    let p0 = multiply_add::<FMA>(1.666_666_5e-1, r, 0.5);
    let p2 = multiply_add::<FMA>(8.333_452e-3, r, 4.166_579_6e-2);
    let p4 = multiply_add::<FMA>(1.987_569_1e-4, r, 1.398_2e-3);
    let p = multiply_add::<FMA>(multiply_add::<FMA>(p4, r2, p2), r2, p0);
    let p = multiply_add::<FMA>(p, r2, r + 1.0);
    // The low bits of `shifted` are n in two's complement; the shift drops the others.
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// `softmax(z * inv_temperature)`.
#[inline(always)]
pub fn softmax<const FMA: bool>(z: PerClass, inv_temperature: f32) -> PerClass {
    let top = larger(larger(z[0], z[1]), z[2]);
    let e = z.map(|z| exp_negative::<FMA>((z - top) * inv_temperature));
    let inv = 1.0 / (e[0] + e[1] + e[2]);
    e.map(|e| e * inv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_accurate_to_single_precision() {
        let mut worst = 0.0_f64;
        for i in 0..200_000 {
            let x = -80.0 * (f64::from(i) / 200_000.0).powi(2);
            let x = x as f32;
            for y in [exp_negative::<false>(x), exp_negative::<true>(x)] {
                worst = worst.max((f64::from(y) / f64::from(x).exp() - 1.0).abs());
            }
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
    }

    #[test]
    fn softmax_is_within_1e_6_of_double_precision() {
        let mut worst = 0.0_f64;
        for i in 0..50_000_u32 {
            let f = |k: u32| ((i.wrapping_mul(2_654_435_761) >> k) & 0xff) as f32 / 8.0 - 16.0;
            let z = [f(0), f(8), f(16)];
            let p = softmax::<false>(z, 0.7);
            let e = z.map(|z| (f64::from(z) * f64::from(0.7_f32)).exp());
            let sum: f64 = e.iter().sum();
            for c in 0..3 {
                worst = worst.max((f64::from(p[c]) - e[c] / sum).abs());
            }
        }
        assert!(worst < 1e-6, "probability error {worst:e}");
    }

    #[test]
    fn softmax_of_huge_logits_is_finite() {
        let p = softmax::<false>([1e30, -1e30, 0.0], 1.0);
        assert_eq!(p, [1.0, p[1], p[2]]);
        assert!(p.iter().all(|p| p.is_finite()));
    }
}
