//! Everything between the matrices: attention, norms, GELU.
//!
//! Plain Rust over fixed-size rows, compiled once for each instruction set: the compiler makes the
//! vector code, and the scalar version is the same text. A version with fused multiply-adds rounds
//! once where the other rounds twice; nothing else differs.
#![expect(unsafe_code, reason = "calls into code compiled for more than the base instructions")]
#![expect(clippy::inline_always, reason = "inlined is what makes a body compile for its caller")]

use super::weights::Norm;
use crate::signal::Isa;

/// Numbers that are summed side by side.
const LANES: usize = 16;
/// Queries that share one pass over the keys.
const TILE: usize = 4;

/// Defines `name(isa, ..)`, which runs `body` compiled for `isa`. `body` takes whether multiply-adds
/// are fused as a constant.
macro_rules! versions {
    ($name:ident $(<const $size:ident>)?, $body:ident, ($($argument:ident: $type:ty),*)) => {
        fn $name $(<const $size: usize>)? (isa: Isa, $($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<const $size: usize>)? ($($argument: $type),*) {
                $body::<$($size,)? true>($($argument),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
            fn avx512 $(<const $size: usize>)? ($($argument: $type),*) {
                $body::<$($size,)? true>($($argument),*);
            }
            match isa {
                Isa::Scalar => $body::<$($size,)? false>($($argument),*),
                // SAFETY: `Embedder::load_for` refused instructions the processor does not have.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2 $(::<$size>)? ($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512 $(::<$size>)? ($($argument),*) },
                #[cfg(not(target_arch = "x86_64"))]
                _ => $body::<$($size,)? false>($($argument),*),
            }
        }
    };
}

versions!(gelu_rows, gelu_body, (rows: &mut [f32], bias: &[f32]));
versions!(norm_rows, norm_body, (rows: &mut [f32], bias: &[f32], norm: &Norm, epsilon: f32));
versions!(attend<const D>, attention_body, (call: &mut Call<'_>));

/// `gelu(x + bias)` for every row, in place.
pub(super) fn gelu(isa: Isa, rows: &mut [f32], bias: &[f32]) {
    gelu_rows(isa, rows, bias);
}

/// Layer norm of `x + bias` for every row, in place.
pub(super) fn layer_norm(isa: Isa, rows: &mut [f32], bias: &[f32], norm: &Norm, epsilon: f32) {
    norm_rows(isa, rows, bias, norm, epsilon);
}

/// `a * b + c`.
#[inline(always)]
fn madd<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `e` to `x`, within 2 units in the last place, for `x` up to 88; 0 below -87.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` is its Taylor polynomial of degree 7, whose error
/// is below `r^8 / 8! < 6e-9`.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with few enough bits that its products with n are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let rounded = madd::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = madd::<FUSED>(n, -LN2_LOW, madd::<FUSED>(n, -LN2_HIGH, x));
    let mut sum = 1.0 / 5040.0;
    for factorial in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = madd::<FUSED>(sum, r, 1.0 / factorial);
    }
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if x < -87.0 { 0.0 } else { sum * f32::from_bits(exponent) }
}

/// The Gauss error function, within 5e-7 (Abramowitz and Stegun, 7.1.26: 1.5e-7 and rounding).
#[inline(always)]
fn erf<const FUSED: bool>(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / madd::<FUSED>(0.327_591_1, size, 1.0);
    let mut sum = 1.061_405_4;
    for coefficient in [-1.453_152_1, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        sum = madd::<FUSED>(sum, t, coefficient);
    }
    (1.0 - sum * t * exp::<FUSED>(-size * size)).copysign(x)
}

#[inline(always)]
fn gelu_body<const FUSED: bool>(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        for (x, bias) in row.iter_mut().zip(bias) {
            let biased = *x + bias;
            let half = 0.5 * biased;
            *x = madd::<FUSED>(half, erf::<FUSED>(biased * std::f32::consts::FRAC_1_SQRT_2), half);
        }
    }
}

/// Sum of `of(x)` over a row.
#[inline(always)]
fn sum(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += of(chunk[lane]);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|&x| of(x)).sum::<f32>()
}

#[inline(always)]
fn norm_body<const FUSED: bool>(rows: &mut [f32], bias: &[f32], norm: &Norm, epsilon: f32) {
    let dim = bias.len() as f32;
    for row in rows.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        let mean = sum(row, |x| x) / dim;
        let variance = sum(row, |x| (x - mean) * (x - mean)) / dim;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for ((x, weight), shift) in row.iter_mut().zip(&norm.scale).zip(&norm.shift) {
            *x = madd::<FUSED>((*x - mean) * scale, *weight, *shift);
        }
    }
}

/// Memory of attention for texts of up to so many tokens.
pub(super) struct Attention {
    head_dim: usize,
    /// One head's keys, (`head_dim`, tokens).
    keys: Vec<f32>,
    /// Scores of a tile, ([`TILE`], tokens).
    scores: Vec<f32>,
}

/// One text: queries, keys and values (tokens, dim), their biases still to be added.
struct Call<'a> {
    memory: &'a mut Attention,
    queries: &'a mut [f32],
    keys: &'a [f32],
    values: &'a [f32],
    biases: [&'a [f32]; 3],
}

impl Attention {
    pub(super) fn new(tokens_max: usize, head_dim: usize) -> Self {
        let tokens = tokens_max.next_multiple_of(LANES);
        Self { head_dim, keys: vec![0.0; head_dim * tokens], scores: vec![0.0; TILE * tokens] }
    }

    /// Every token of a text looks at all of them; the result takes the place of the queries.
    pub(super) fn run(
        &mut self,
        isa: Isa,
        queries: &mut [f32],
        keys: &[f32],
        values: &[f32],
        biases: [&[f32]; 3],
    ) {
        let head_dim = self.head_dim;
        let mut call = Call { memory: self, queries, keys, values, biases };
        match head_dim {
            32 => attend::<32>(isa, &mut call),
            64 => attend::<64>(isa, &mut call),
            _ => unreachable!("Invariant: heads of 32 or 64, checked when the model was loaded"),
        }
    }
}

#[inline(always)]
fn attention_body<const D: usize, const FUSED: bool>(call: &mut Call<'_>) {
    let Call { memory, queries, keys, values, biases } = call;
    let dim = biases[0].len();
    let tokens = keys.len() / dim;
    let padded = tokens.next_multiple_of(LANES);
    let heads = [keys, values].map(|rows| rows.as_chunks::<D>().0); // (tokens * heads, D)
    let [query_bias, key_bias, value_bias] = biases.map(|bias| bias.as_chunks::<D>().0);
    let heads_len = query_bias.len();
    let scale = 1.0 / (D as f32).sqrt();
    for head in 0..heads_len {
        let of_head = |rows: &'_ [[f32; D]], token: usize| rows[token * heads_len + head];
        for token in 0..tokens {
            for (d, x) in of_head(heads[0], token).into_iter().enumerate() {
                memory.keys[d * padded + token] = x + key_bias[head][d];
            }
        }
        for tile in (0..tokens).step_by(TILE) {
            let tile_len = TILE.min(tokens - tile);
            let all = queries.as_chunks_mut::<D>().0;
            let mut query = [[0.0; D]; TILE];
            for (t, query) in query.iter_mut().enumerate().take(tile_len) {
                let row = &all[(tile + t) * heads_len + head];
                for d in 0..D {
                    query[d] = (row[d] + query_bias[head][d]) * scale;
                }
            }
            let scores = &mut memory.scores[..TILE * padded];
            score::<D, FUSED>(&query, &memory.keys, scores, padded);
            let mut shares = [0.0; TILE];
            for (row, share) in scores.chunks_exact_mut(padded).zip(&mut shares) {
                *share = 1.0 / exponentials::<FUSED>(row, tokens);
            }
            let mut mixed = [[0.0; D]; TILE];
            for token in 0..tokens {
                let value = of_head(heads[1], token);
                for t in 0..TILE {
                    let weight = scores[t * padded + token];
                    for d in 0..D {
                        mixed[t][d] = madd::<FUSED>(weight, value[d], mixed[t][d]);
                    }
                }
            }
            for t in 0..tile_len {
                let out = &mut all[(tile + t) * heads_len + head];
                for d in 0..D {
                    // The weights sum to one, so the bias may be added behind them.
                    out[d] = madd::<FUSED>(mixed[t][d], shares[t], value_bias[head][d]);
                }
            }
        }
    }
}

/// Products of a tile of queries with all keys (D, padded), into `scores` (TILE, padded).
#[inline(always)]
fn score<const D: usize, const FUSED: bool>(
    queries: &[[f32; D]; TILE],
    keys: &[f32],
    scores: &mut [f32],
    padded: usize,
) {
    for block in (0..padded).step_by(LANES) {
        let mut sums = [[0.0; LANES]; TILE];
        for d in 0..D {
            let mut row = [0.0; LANES];
            row.copy_from_slice(&keys[d * padded + block..][..LANES]);
            for t in 0..TILE {
                for lane in 0..LANES {
                    sums[t][lane] = madd::<FUSED>(queries[t][d], row[lane], sums[t][lane]);
                }
            }
        }
        for t in 0..TILE {
            scores[t * padded + block..][..LANES].copy_from_slice(&sums[t]);
        }
    }
}

/// The first `tokens` scores become `exp(score - largest)`, the others 0; their sum.
#[inline(always)]
fn exponentials<const FUSED: bool>(scores: &mut [f32], tokens: usize) -> f32 {
    scores[tokens..].fill(f32::MIN);
    let mut most = [f32::MIN; LANES];
    for chunk in scores.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            most[lane] = if chunk[lane] > most[lane] { chunk[lane] } else { most[lane] };
        }
    }
    let most = most.into_iter().fold(f32::MIN, f32::max);
    let mut sums = [0.0; LANES];
    for chunk in scores.as_chunks_mut::<LANES>().0 {
        for lane in 0..LANES {
            chunk[lane] = exp::<FUSED>(chunk[lane] - most);
            sums[lane] += chunk[lane];
        }
    }
    sums.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_erf_are_near_the_exact_ones() {
        for step in -8_700..=8_700 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                assert!((f64::from(got) / exact - 1.0).abs() < 3e-7, "exp({x}) = {got}");
            }
        }
        assert_eq!(exp::<true>(-90.0), 0.0);
        assert_eq!(exp::<true>(f32::MIN), 0.0);
        // Its series, exact enough for |x| <= 3 in f64.
        for step in -300..=300 {
            let x = f64::from(step) / 100.0;
            let (mut term, mut sum) = (x, x);
            for n in 1..80 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let exact = sum * std::f64::consts::FRAC_2_SQRT_PI;
            for got in [erf::<true>(x as f32), erf::<false>(x as f32)] {
                assert!((f64::from(got) - exact).abs() < 5e-7, "erf({x}) = {got}, {exact}");
            }
        }
        assert_eq!(erf::<true>(30.0), 1.0);
        assert_eq!(erf::<false>(-30.0), -1.0);
    }
}
