//! Activations as 8-bit integers, in panels of 16 tokens.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

use super::{BLOCK_COLUMNS, Simd};

/// Tokens of one panel.
pub const PANEL_TOKENS: usize = 16;

/// 32 columns of a panel, `x = scale * value`. A panel is as many of them as a token has blocks.
#[repr(C, align(64))]
pub(super) struct PanelBlock {
    /// `round(x / scale)`, between -127 and 127.
    pub values: [[i8; BLOCK_COLUMNS]; PANEL_TOKENS],
    /// `max |x| / 127`.
    pub scales: [f32; PANEL_TOKENS],
    /// `scale * sum of values`: what a minimum of the weights multiplies.
    pub sums: [f32; PANEL_TOKENS],
    /// `-128 * sum of values`: where the integer sum begins when the weights' zero is 128.
    pub offsets: [i32; PANEL_TOKENS],
    /// `-32 * sum of the first 16 values`: the same for 16 columns and a zero of 32.
    pub halves: [i32; PANEL_TOKENS],
}

/// Largest magnitude of an activation's integer.
const QUANT_MAX: f32 = 127.0;

/// Quantised activations `(tokens, columns)`, written and read by several threads.
#[derive(Debug)]
pub struct Activations {
    first: *mut PanelBlock,
    layout: Layout,
    tokens_max: usize,
    columns: usize,
    simd: Simd,
}

// SAFETY: plain memory; the contracts of `quantise` and `matmul` keep threads apart.
unsafe impl Send for Activations {}
// SAFETY: as above.
unsafe impl Sync for Activations {}

impl Activations {
    /// Room for `tokens_max` tokens of `columns` numbers, all 0.
    ///
    /// # Panics
    /// If `columns` is not a positive multiple of 32, or `tokens_max` is 0.
    pub fn new(tokens_max: usize, columns: usize) -> Self {
        Self::with_simd(tokens_max, columns, Simd::best())
    }

    /// The same, quantised by `simd`; all of them give the same bits.
    ///
    /// # Panics
    /// As [`Self::new`], and if the processor does not have `simd`.
    pub fn with_simd(tokens_max: usize, columns: usize, simd: Simd) -> Self {
        assert!(simd.available(), "instructions of this processor");
        assert!(columns > 0 && columns.is_multiple_of(BLOCK_COLUMNS), "columns in blocks of 32");
        assert!(tokens_max > 0, "room for a token");
        let bytes = tokens_max
            .div_ceil(PANEL_TOKENS)
            .checked_mul(columns / BLOCK_COLUMNS * size_of::<PanelBlock>())
            .expect("fits the address space");
        let layout = Layout::from_size_align(bytes, 4096).expect("fits the address space");
        // SAFETY: the size is not 0.
        let first: *mut PanelBlock = unsafe { alloc_zeroed(layout) }.cast();
        if first.is_null() {
            handle_alloc_error(layout);
        }
        Self { first, layout, tokens_max, columns, simd }
    }

    /// Most tokens.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Numbers of one token.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Block `block` of the panel of `token`.
    pub(super) fn block(&self, token: usize, block: usize) -> *mut PanelBlock {
        let blocks = self.columns / BLOCK_COLUMNS;
        assert!(token < self.tokens_max && block < blocks, "a block of these activations");
        // SAFETY: inside the allocation by the assertion above.
        unsafe { self.first.add(token / PANEL_TOKENS * blocks + block) }
    }

    /// Quantise `values` as columns `column..` of `token`.
    ///
    /// # Safety
    /// While this runs, no other thread touches these columns of `token`, and none runs a product
    /// that reads `token`'s panel. (Other columns, and other tokens, may be written.)
    ///
    /// # Panics
    /// If the columns are not whole blocks within a token.
    pub unsafe fn quantise(&self, token: usize, column: usize, values: &[f32]) {
        assert!(column.is_multiple_of(BLOCK_COLUMNS), "columns in blocks of 32");
        assert!(values.len().is_multiple_of(BLOCK_COLUMNS), "columns in blocks of 32");
        assert!(column + values.len() <= self.columns, "columns of these activations");
        if values.is_empty() {
            return;
        }
        let block = self.block(token, (column + values.len()) / BLOCK_COLUMNS - 1);
        // SAFETY: the blocks of `values` are the ones up to `block`, all of this allocation.
        unsafe {
            let first = block.sub(values.len() / BLOCK_COLUMNS - 1);
            let slot = token % PANEL_TOKENS;
            match self.simd {
                #[cfg(target_arch = "x86_64")]
                Simd::Avx512Vnni => super::avx512::quantise(first, slot, values),
                _ => quantise(first, slot, values),
            }
        }
    }

    /// What is stored for `token`, as f32.
    ///
    /// # Safety
    /// No thread writes this token meanwhile.
    ///
    /// # Panics
    /// If `out` is not one token.
    pub unsafe fn dequantise(&self, token: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.columns, "one token");
        let slot = token % PANEL_TOKENS;
        for (index, out) in out.chunks_exact_mut(BLOCK_COLUMNS).enumerate() {
            let block = self.block(token, index);
            // SAFETY: a block of this allocation, and nobody writes the slot.
            let (values, scale) = unsafe { ((*block).values[slot], (*block).scales[slot]) };
            for (out, value) in out.iter_mut().zip(values) {
                *out = f32::from(value) * scale;
            }
        }
    }
}

impl Drop for Activations {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.first.cast(), self.layout) }
    }
}

/// Quantise `values` into consecutive blocks' `slot`.
///
/// # Safety
/// As many blocks of a panel at `first` as `values` has; nobody else touches these slots.
#[inline]
unsafe fn quantise(first: *mut PanelBlock, slot: usize, values: &[f32]) {
    for (index, x) in values.as_chunks::<BLOCK_COLUMNS>().0.iter().enumerate() {
        let mut lanes = [0.0_f32; 8];
        for x in x.as_chunks::<8>().0 {
            for (lane, x) in lanes.iter_mut().zip(x) {
                *lane = if x.abs() > *lane { x.abs() } else { *lane };
            }
        }
        let most = lanes.iter().fold(0.0_f32, |most, &lane| most.max(lane));
        let (scale, inverse) = scales(most);
        // Adding 1.5 * 2^23 leaves no bits for fractions: the sum's low bits are the integer,
        // rounded to nearest (ties to even), without a call or a checked cast.
        let quants = x.map(|x| (x * inverse + 12_582_912.0).to_bits() as i8);
        let sum = |part: &[i8]| part.iter().map(|&q| i32::from(q)).sum();
        let (first_sum, last_sum): (i32, i32) = (sum(&quants[..16]), sum(&quants[16..]));
        // SAFETY: the caller's; no reference to the block as a whole is made.
        unsafe { store(first.add(index), slot, quants, (scale, first_sum, first_sum + last_sum)) }
    }
}

/// A block's scale and what to multiply by, from its largest magnitude.
#[inline]
pub(super) fn scales(most: f32) -> (f32, f32) {
    // A block whose largest number is below 1e-36 is 0: its reciprocal would be infinite.
    (most / QUANT_MAX, if most > 1e-36 { QUANT_MAX / most } else { 0.0 })
}

/// Write one token's block: quanta, scale, sum of the first 16, sum of all.
///
/// # Safety
/// `block` is a block and nobody else touches its `slot`.
#[inline]
pub(super) unsafe fn store(
    block: *mut PanelBlock,
    slot: usize,
    quants: [i8; BLOCK_COLUMNS],
    (scale, first, all): (f32, i32, i32),
) {
    // SAFETY: the caller's.
    unsafe {
        (*block).values[slot] = quants;
        (*block).scales[slot] = scale;
        (*block).sums[slot] = scale * all as f32;
        (*block).offsets[slot] = -128 * all;
        (*block).halves[slot] = -32 * first;
    }
}
