//! Products of quantised weights and quantised activations: where a language model spends its time.
//!
//! `out[token][row] = sum over columns of weights[row][column] * activations[token][column]`
//!
//! - [`QuantMatrix`]: weights `(rows, columns)` in groups of [`GROUP_ROWS`] rows by
//!   [`BLOCK_COLUMNS`] columns, repacked at load so that one vector instruction serves 16 rows and
//!   four columns of one token, without horizontal sums. The numbers are the file's, exactly;
//!   F32, F16 and BF16 are rounded to 8 bits a weight (see [`QuantMatrix::from_tensor`]).
//! - [`Activations`]: `(tokens, columns)` as 8-bit integers with one f32 scale per token and 32
//!   columns, in panels of [`PANEL_TOKENS`] tokens.
//! - [`matmul`], [`matmul_many`]: the products, f32 rows out.
//!
//! # Who may write what
//! Nothing here starts a thread or waits for one. A step of a model runs on all workers of a
//! [`crate::pool::Pool`]; between two barriers each of them
//! - quantises tokens (or column ranges of one token) that no other worker touches,
//! - or calls [`matmul`] for groups of rows, or for panels of tokens, that no other worker writes,
//!   while nobody writes the activations it reads.
//!
//! Two ways to share a product:
//! - *by rows* (few tokens): every worker reads all activations and its part of the weights:
//!   `matmul_many(.., tokens: 0..n, Share { index, count })`, then a barrier;
//! - *by tokens* (a prompt): every worker takes whole panels of tokens and all rows
//!   (`Share::ALL`), and needs no barrier until it reads another worker's tokens.
//!
//! # The same bits
//! One result is `sum over blocks b, in order, of scale[b] * (integer sum of 32 products)`: an
//! integer sum is exact in any order, and the f32 sum has one accumulator in one order whatever
//! the number of tokens, threads, or tiles. So a row's result never depends on what else is in
//! the call. It differs, in the last bits, between instruction sets.
#![expect(unsafe_code, reason = "vector kernels over raw, shared memory")]

mod activations;
mod arena;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod matrix;
pub mod roofline;
mod scalar;
#[cfg(test)]
mod tests;

pub use activations::{Activations, PANEL_TOKENS};
pub use arena::Arena;
pub use matrix::{BLOCK_COLUMNS, GROUP_ROWS, QuantMatrix};

use std::marker::PhantomData;
use std::ops::Range;

use crate::Result;
use crate::signal::{ISA_VARIABLE, Isa};

/// How far ahead of their use weights are fetched, bytes: what memory delivers within a few times
/// its latency. Measured on one core of a Zen 5 server: a generated token's weights are read at
/// 21 GB/s without, 37 GB/s at 4 KiB, 39 to 40 GB/s from 8 to 48 KiB.
const PREFETCH_BYTES: usize = 16 << 10;

/// The instructions the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    /// Plain Rust, any processor: the twin the others are tested against.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// The same with AVX-VNNI.
    Avx2Vnni,
    /// AVX-512 F/BW/DQ/VL with VNNI.
    Avx512Vnni,
}

impl Simd {
    /// All of them, slowest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx2Vnni, Self::Avx512Vnni];

    /// Whether this processor (and operating system) runs it.
    pub fn available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = Isa::Avx2.available() && is_x86_feature_detected!("f16c");
            match self {
                Self::Scalar => true,
                Self::Avx2 => avx2,
                Self::Avx2Vnni => avx2 && is_x86_feature_detected!("avxvnni"),
                Self::Avx512Vnni => {
                    avx2 && Isa::Avx512.available()
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512vnni")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Scalar
        }
    }

    /// Its name in benchmarks and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx2Vnni => "avx2-vnni",
            Self::Avx512Vnni => "avx512-vnni",
        }
    }

    /// The fastest this processor has up to what `QBTC_ISA` allows.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if `QBTC_ISA` names something unknown or not available.
    pub fn detect() -> Result<Self> {
        let limit = match std::env::var(ISA_VARIABLE) {
            Ok(name) => Isa::parse(&name)?,
            Err(_) => Isa::Avx512,
        };
        Ok(Self::up_to(limit))
    }

    /// The fastest this processor has.
    pub fn best() -> Self {
        Self::up_to(Isa::Avx512)
    }

    /// The fastest this processor has that needs no more than `isa`.
    pub fn up_to(isa: Isa) -> Self {
        let allowed: &[Self] = match isa {
            Isa::Scalar => &Self::ALL[..1],
            Isa::Avx2 => &Self::ALL[..3],
            Isa::Avx512 => &Self::ALL,
        };
        allowed.iter().copied().rfind(|simd| simd.available()).unwrap_or(Self::Scalar)
    }
}

/// Rows of f32 that several threads fill, each its own part: `out[token * stride + row]`.
#[derive(Clone, Copy, Debug)]
pub struct OutRows<'a> {
    first: *mut f32,
    len: usize,
    stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: only `matmul` writes through the pointer, and its contract keeps threads apart.
unsafe impl Send for OutRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for OutRows<'_> {}

impl<'a> OutRows<'a> {
    /// Rows in `values`, `stride` numbers apart.
    ///
    /// # Panics
    /// If `stride` is 0.
    pub fn new(values: &'a mut [f32], stride: usize) -> Self {
        assert!(stride > 0, "rows have a length");
        Self { first: values.as_mut_ptr(), len: values.len(), stride, owner: PhantomData }
    }

    /// The same over memory that threads share.
    ///
    /// # Safety
    /// `first` points to `len` numbers that live as long as `'a`.
    ///
    /// # Panics
    /// If `stride` is 0.
    pub unsafe fn from_raw(first: *mut f32, len: usize, stride: usize) -> Self {
        assert!(stride > 0, "rows have a length");
        Self { first, len, stride, owner: PhantomData }
    }
}

/// What a product does with its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Overwrite the output.
    Replace,
    /// Add to the output (a residual stream).
    Add,
}

/// One of several products of the same activations.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// The weights.
    pub weights: &'a QuantMatrix,
    /// Where its rows go.
    pub out: OutRows<'a>,
    /// What happens to what is there.
    pub write: Write,
}

/// A worker's part of the rows of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which part, below `count`.
    pub index: usize,
    /// Number of parts.
    pub count: usize,
}

impl Share {
    /// All rows.
    pub const ALL: Self = Self { index: 0, count: 1 };
}

/// Products of the same activations with several matrices (queries, keys and values; gate and
/// up), as if their rows were one matrix: this worker computes its `share` of all groups of rows,
/// a contiguous part of about equal bytes.
///
/// # Safety
/// While this runs, no thread writes the panels of `activations` that hold `tokens`, and none
/// touches the rows of `tokens` of the outputs within this share.
///
/// # Panics
/// If sizes do not fit: columns, tokens, outputs.
pub unsafe fn matmul_many(
    products: &[Product<'_>],
    activations: &Activations,
    tokens: Range<usize>,
    share: Share,
) {
    assert!(share.index < share.count, "Invariant: a share is one of its parts");
    let total: usize = products.iter().map(|product| product.weights.bytes()).sum();
    let (low, high) = (total * share.index / share.count, total * (share.index + 1) / share.count);
    let mut before = 0;
    for product in products {
        let weights = product.weights;
        let group = weights.group_bytes();
        // The group that a cut falls into goes to the part that begins there.
        let cut =
            |at: usize| at.saturating_sub(before).div_ceil(group.max(1)).min(weights.groups());
        let groups = cut(low)..cut(high);
        // SAFETY: passed on to the caller.
        unsafe {
            matmul(weights, activations, tokens.clone(), product.out, groups, product.write);
        }
        before += weights.bytes();
    }
}

/// `out[token][row] = weights[row] . activations[token]` for `tokens` and the rows of `groups`
/// (group `g` is rows `16 g .. 16 g + 16`, the last one cut off at the matrix's rows).
///
/// # Safety
/// While this runs, no thread writes the panels of `activations` that hold `tokens`, and none
/// touches these rows of `tokens` of `out`.
///
/// # Panics
/// If sizes do not fit: columns, tokens, groups, output.
pub unsafe fn matmul(
    weights: &QuantMatrix,
    activations: &Activations,
    tokens: Range<usize>,
    out: OutRows<'_>,
    groups: Range<usize>,
    write: Write,
) {
    if tokens.is_empty() || groups.is_empty() {
        return;
    }
    assert_eq!(weights.columns(), activations.columns(), "columns of weights and activations");
    assert!(tokens.end <= activations.tokens_max(), "tokens within the activations");
    assert!(groups.end <= weights.groups(), "groups within the weights");
    assert!(weights.rows() <= out.stride, "rows within the stride of the output");
    assert!((tokens.end - 1) * out.stride + weights.rows() <= out.len, "output within its memory");
    let call = Call { weights, activations, tokens, out, groups, write };
    match weights.simd() {
        // SAFETY: the matrix refused, when it was made, instructions that the processor does not
        // have; sizes are checked above; threads are kept apart by the caller.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512Vnni => unsafe { avx512::matmul(&call) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2 => unsafe { avx2::matmul(&call) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2Vnni => unsafe { avx2::matmul_vnni(&call) },
        // SAFETY: as above.
        _ => unsafe { scalar::matmul(&call) },
    }
}

/// A checked call.
struct Call<'a> {
    weights: &'a QuantMatrix,
    activations: &'a Activations,
    tokens: Range<usize>,
    out: OutRows<'a>,
    groups: Range<usize>,
    write: Write,
}

impl Call<'_> {
    /// First number that `token` gets from `group`, and how many rows there are.
    ///
    /// # Safety
    /// `token` and `group` are within the call.
    unsafe fn out_at(&self, token: usize, group: usize) -> (*mut f32, usize) {
        let row = group * GROUP_ROWS;
        let rows = (self.weights.rows() - row).min(GROUP_ROWS);
        // SAFETY: `matmul` checked that all rows of all its tokens are within the output.
        (unsafe { self.out.first.add(token * self.out.stride + row) }, rows)
    }
}
