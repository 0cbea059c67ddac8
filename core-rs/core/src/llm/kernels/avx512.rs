//! AVX-512 with VNNI: one register is 16 rows, one instruction multiplies 16 rows by four columns
//! of one token.
//!
//! A tile is 16 rows by up to 16 tokens. Per block of 32 columns the quanta are unpacked once into
//! eight registers; each token then takes eight `vpdpbusd` with its four columns broadcast from
//! memory, one conversion, one product of scales and one or two multiply-adds into its own f32
//! accumulator: of Zen 5's two multiplying pipes, 5 or 5.5 cycles for 1024 operations.
//!
//! `vpdpbusd` adds four products of an unsigned (at most 255) and a signed byte into 32 bits
//! without saturation; a block's sum is at most 255 * 127 * 32 < 2^20 and exact in f32.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_cvtsi128_si64, _mm_dpbusd_epi32, _mm_hadd_epi32,
    _mm_prefetch, _mm_set1_epi8, _mm_setzero_si128, _mm_storeu_si128, _mm256_load_si256,
    _mm512_abs_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_cvtepi32_ps,
    _mm512_cvtph_ps, _mm512_cvtps_epi32, _mm512_cvtsepi32_epi8, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_load_ps, _mm512_load_si512, _mm512_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_reduce_max_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_slli_epi16, _mm512_srai_epi32, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_sub_epi32,
};

use super::activations::{PanelBlock, scales, store};
use super::matrix::Format;
use super::{BLOCK_COLUMNS, Call, GROUP_ROWS, PANEL_TOKENS, PREFETCH_BYTES, Write};

/// Weights that stay in the second-level cache while panels of tokens pass, bytes.
const RESIDENT_BYTES: usize = 384 << 10;

/// A format's registers.
trait Layout {
    const QUANTA_BYTES: usize;
    const SCALES_BYTES: usize;
    /// The format's zero is `128 >> shift`; none: it has a minimum instead.
    const ZERO_SHIFT: Option<u32>;
    /// Two scales a block.
    const SPLIT: bool = false;

    /// Eight registers of unsigned bytes.
    ///
    /// # Safety
    /// `from` is the beginning of a block's quanta.
    unsafe fn quanta(from: *const u8) -> [__m512i; 8];

    /// The scale, and the minimum or the scale of the last 16 columns (0 if there is neither).
    ///
    /// # Safety
    /// `from` is the beginning of a block's scales.
    unsafe fn scales(from: *const u8) -> (__m512, __m512);
}

/// # Safety
/// 64 bytes at `from`, on a cache line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn line(from: *const u8) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_load_si512(from.cast()) }
}

/// # Safety
/// 16 f16 at `from`, on 32 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn halves(from: *const u8) -> __m512 {
    // SAFETY: the caller's.
    _mm512_cvtph_ps(unsafe { _mm256_load_si256(from.cast()) })
}

/// Four lines of nibbles: low ones, then high ones.
///
/// # Safety
/// 256 bytes at `from`, on a cache line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn nibbles(from: *const u8) -> [__m512i; 8] {
    let low = _mm512_set1_epi8(15);
    // SAFETY: the caller's.
    let packed =
        unsafe { [line(from), line(from.add(64)), line(from.add(128)), line(from.add(192))] };
    let high = |packed| _mm512_and_si512(_mm512_srli_epi16::<4>(packed), low);
    let [a, b, c, d] = packed;
    [
        _mm512_and_si512(a, low),
        _mm512_and_si512(b, low),
        _mm512_and_si512(c, low),
        _mm512_and_si512(d, low),
        high(a),
        high(b),
        high(c),
        high(d),
    ]
}

/// Fifth bits: bit `j` of the line belongs to register `j`.
///
/// # Safety
/// 320 bytes at `from`, on a cache line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn nibbles_and_fifths(from: *const u8) -> [__m512i; 8] {
    let bit = _mm512_set1_epi8(16);
    // SAFETY: the caller's.
    let (mut w, h) = unsafe { (nibbles(from), line(from.add(256))) };
    macro_rules! add {
        ($j:literal, $shifted:expr) => {
            w[$j] = _mm512_or_si512(w[$j], _mm512_and_si512($shifted, bit));
        };
    }
    add!(0, _mm512_slli_epi16::<4>(h));
    add!(1, _mm512_slli_epi16::<3>(h));
    add!(2, _mm512_slli_epi16::<2>(h));
    add!(3, _mm512_slli_epi16::<1>(h));
    add!(4, h);
    add!(5, _mm512_srli_epi16::<1>(h));
    add!(6, _mm512_srli_epi16::<2>(h));
    add!(7, _mm512_srli_epi16::<3>(h));
    w
}

macro_rules! layout {
    ($name:ident, $quanta:literal, $scales:literal, $zero:expr, split: $split:literal,
     |$q:ident| $load_quanta:expr, |$s:ident| $load_scales:expr) => {
        struct $name;

        impl Layout for $name {
            const QUANTA_BYTES: usize = $quanta;
            const SCALES_BYTES: usize = $scales;
            const ZERO_SHIFT: Option<u32> = $zero;
            const SPLIT: bool = $split;

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw")]
            unsafe fn quanta($q: *const u8) -> [__m512i; 8] {
                // SAFETY: the caller's.
                unsafe { $load_quanta }
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw")]
            unsafe fn scales($s: *const u8) -> (__m512, __m512) {
                // SAFETY: the caller's.
                unsafe { $load_scales }
            }
        }
    };
}

layout!(Four, 256, 32, Some(4), split: false, |q| nibbles(q), |s| (halves(s), _mm512_setzero_ps()));
layout!(FourMinimum, 256, 64, None, split: false, |q| nibbles(q), |s| (halves(s), halves(s.add(32))));
layout!(FourWide, 256, 128, None, split: false, |q| nibbles(q),
    |s| (_mm512_load_ps(s.cast()), _mm512_load_ps(s.add(64).cast())));
layout!(Five, 320, 32, Some(3), split: false, |q| nibbles_and_fifths(q),
    |s| (halves(s), _mm512_setzero_ps()));
layout!(FiveMinimum, 320, 64, None, split: false, |q| nibbles_and_fifths(q),
    |s| (halves(s), halves(s.add(32))));
layout!(FiveWide, 320, 128, None, split: false, |q| nibbles_and_fifths(q),
    |s| (_mm512_load_ps(s.cast()), _mm512_load_ps(s.add(64).cast())));
layout!(Six, 384, 128, Some(2), split: true, |q| nibbles_and_sixths(q),
    |s| (_mm512_load_ps(s.cast()), _mm512_load_ps(s.add(64).cast())));
layout!(Eight, 512, 32, Some(0), split: false,
    |q| [line(q), line(q.add(64)), line(q.add(128)), line(q.add(192)),
         line(q.add(256)), line(q.add(320)), line(q.add(384)), line(q.add(448))],
    |s| (halves(s), _mm512_setzero_ps()));

/// Upper two bits: register `j`'s are bits `2 (j % 4)` of line `j / 4`.
///
/// # Safety
/// 384 bytes at `from`, on a cache line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn nibbles_and_sixths(from: *const u8) -> [__m512i; 8] {
    let bits = _mm512_set1_epi8(48);
    // SAFETY: the caller's.
    let mut w = unsafe { nibbles(from) };
    for half in 0..2 {
        // SAFETY: the caller's.
        let h = unsafe { line(from.add(256 + 64 * half)) };
        let at = 4 * half;
        w[at] = _mm512_or_si512(w[at], _mm512_and_si512(_mm512_slli_epi16::<4>(h), bits));
        w[at + 1] = _mm512_or_si512(w[at + 1], _mm512_and_si512(_mm512_slli_epi16::<2>(h), bits));
        w[at + 2] = _mm512_or_si512(w[at + 2], _mm512_and_si512(h, bits));
        w[at + 3] = _mm512_or_si512(w[at + 3], _mm512_and_si512(_mm512_srli_epi16::<2>(h), bits));
    }
    w
}

/// Four activations of a token, to every row.
///
/// # Safety
/// Four bytes at `from`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn columns(from: *const u8) -> __m512i {
    // SAFETY: the caller's.
    _mm512_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() })
}

/// A block's weights in registers.
#[derive(Clone, Copy)]
struct Weights {
    quanta: [__m512i; 8],
    scale: __m512,
    /// The minimum, or the scale of the last 16 columns.
    second: __m512,
}

/// One register of weights times four columns of four tokens (32 bytes apart).
macro_rules! dots {
    ($w:literal, $at:literal) => {
        concat!(
            "vpdpbusd {a}, ",
            $w,
            ", dword ptr [{values} + ",
            $at,
            "]{{1to16}}\n",
            "vpdpbusd {b}, ",
            $w,
            ", dword ptr [{values} + ",
            $at,
            " + 32]{{1to16}}\n",
            "vpdpbusd {c}, ",
            $w,
            ", dword ptr [{values} + ",
            $at,
            " + 64]{{1to16}}\n",
            "vpdpbusd {d}, ",
            $w,
            ", dword ptr [{values} + ",
            $at,
            " + 96]{{1to16}}",
        )
    };
}

/// Adds the products of a block with four tokens.
///
/// In assembly, because the order matters and compilers change it: four chains of eight dependent
/// instructions take turns, and every broadcast is part of its product.
///
/// # Safety
/// 128 bytes at `values`; the processor has the instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn four_tokens(sums: [&mut __m512i; 4], w: &[__m512i; 8], values: *const u8) {
    let [a, b, c, d] = sums;
    // SAFETY: reads 128 bytes from `values` and nothing else.
    unsafe {
        std::arch::asm!(
            dots!("{w0}", 0),
            dots!("{w1}", 4),
            dots!("{w2}", 8),
            dots!("{w3}", 12),
            dots!("{w4}", 16),
            dots!("{w5}", 20),
            dots!("{w6}", 24),
            dots!("{w7}", 28),
            a = inout(zmm_reg) *a,
            b = inout(zmm_reg) *b,
            c = inout(zmm_reg) *c,
            d = inout(zmm_reg) *d,
            w0 = in(zmm_reg) w[0],
            w1 = in(zmm_reg) w[1],
            w2 = in(zmm_reg) w[2],
            w3 = in(zmm_reg) w[3],
            w4 = in(zmm_reg) w[4],
            w5 = in(zmm_reg) w[5],
            w6 = in(zmm_reg) w[6],
            w7 = in(zmm_reg) w[7],
            values = in(reg) values,
            options(nostack, readonly, preserves_flags, pure),
        );
    }
}

/// One block of `N` tokens (at most four) from `slot` on. The tokens' chains of dependent
/// instructions overlap.
///
/// # Safety
/// A block of activations; `slot + N` at most 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn few<F: Layout, const N: usize>(
    w: &Weights,
    panel: *const PanelBlock,
    slot: usize,
    sums: &mut [__m512; N],
) {
    // Two scales, or too few tokens to overlap: two chains of four instead of one of eight.
    let two = F::SPLIT || N <= 2;
    let mut low = [_mm512_setzero_si512(); N];
    let mut high = [_mm512_setzero_si512(); N];
    // SAFETY: the caller's; slots and columns are within the block.
    unsafe {
        // Pointers, since checked indices would cut the tile into sixteen branches.
        let scales = (&raw const (*panel).scales).cast::<f32>().add(slot);
        let totals = (&raw const (*panel).sums).cast::<f32>().add(slot);
        let offsets = (&raw const (*panel).offsets).cast::<i32>().add(slot);
        let halves = (&raw const (*panel).halves).cast::<i32>().add(slot);
        let at = |t: usize, j: usize| {
            columns((&raw const (*panel).values).cast::<u8>().add((slot + t) * 32 + 4 * j))
        };
        for t in 0..N {
            let offset = || _mm512_set1_epi32(*offsets.add(t));
            match F::ZERO_SHIFT {
                Some(2) if F::SPLIT => {
                    low[t] = _mm512_set1_epi32(*halves.add(t));
                    high[t] = _mm512_sub_epi32(_mm512_srai_epi32::<2>(offset()), low[t]);
                }
                Some(0) => low[t] = offset(),
                Some(3) => low[t] = _mm512_srai_epi32::<3>(offset()),
                Some(4) => low[t] = _mm512_srai_epi32::<4>(offset()),
                _ => {}
            }
        }
        if let ([a, b, c, d], false) = (&mut low[..], two) {
            four_tokens(
                [a, b, c, d],
                &w.quanta,
                (&raw const (*panel).values).cast::<u8>().add(slot * 32),
            );
        } else {
            for j in 0..4 {
                for t in 0..N {
                    low[t] = _mm512_dpbusd_epi32(low[t], w.quanta[j], at(t, j));
                    high[t] = _mm512_dpbusd_epi32(high[t], w.quanta[j + 4], at(t, j + 4));
                }
            }
        }
        for (t, sum) in sums.iter_mut().enumerate() {
            if two && !F::SPLIT {
                low[t] = _mm512_add_epi32(low[t], high[t]);
            }
            let activation = _mm512_set1_ps(*scales.add(t));
            let product = _mm512_mul_ps(w.scale, activation);
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low[t]), product, *sum);
            if F::SPLIT {
                let product = _mm512_mul_ps(w.second, activation);
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high[t]), product, *sum);
            } else if F::ZERO_SHIFT.is_none() {
                let token = _mm512_set1_ps(*totals.add(t));
                *sum = _mm512_fmadd_ps(w.second, token, *sum);
            }
        }
    }
}

/// One tile: a group of rows by `Q` times `N` tokens from `token` on, of which `valid` are wanted.
///
/// # Safety
/// As [`super::matmul`]; the tokens are in one panel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile<F: Layout, const Q: usize, const N: usize>(
    call: &Call<'_>,
    group: usize,
    token: usize,
    valid: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); N]; Q];
    let (quanta, scales) = call.weights.group(group);
    let (mut quanta, mut scales) = (quanta.as_ptr(), scales.as_ptr());
    let mut panel = call.activations.block(token, 0).cast_const();
    let slot = token % PANEL_TOKENS;
    let mut ahead = quanta.wrapping_add(PREFETCH_BYTES);
    for _ in 0..call.weights.blocks() {
        // SAFETY: the pointers walk over the blocks of the group and of the panel. A prefetch may
        // name any address.
        unsafe {
            let mut line = 0;
            while line < F::QUANTA_BYTES + F::SCALES_BYTES {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line).cast());
                line += 64;
            }
            ahead = ahead.wrapping_add(F::QUANTA_BYTES + F::SCALES_BYTES);
            let (scale, second) = F::scales(scales);
            let w = Weights { quanta: F::quanta(quanta), scale, second };
            // Unrolled by hand: a rolled loop would keep the sums in memory.
            few::<F, N>(&w, panel, slot, &mut sums[0]);
            if Q > 1 {
                few::<F, N>(&w, panel, slot + N, &mut sums[1]);
            }
            if Q > 2 {
                few::<F, N>(&w, panel, slot + 2 * N, &mut sums[2]);
            }
            if Q > 3 {
                few::<F, N>(&w, panel, slot + 3 * N, &mut sums[3]);
            }
            quanta = quanta.add(F::QUANTA_BYTES);
            scales = scales.add(F::SCALES_BYTES);
            panel = panel.add(1);
        }
    }
    // A copy, element by element: the sums above then never leave their registers.
    let mut results = [_mm512_setzero_ps(); PANEL_TOKENS];
    for (results, sums) in results.chunks_exact_mut(N).zip(&sums) {
        results.copy_from_slice(sums);
    }
    for (t, &sum) in results.iter().enumerate().take(valid) {
        // SAFETY: `valid` tokens are the call's.
        unsafe {
            let (out, rows) = call.out_at(token + t, group);
            if rows == GROUP_ROWS {
                let sum = match call.write {
                    Write::Add => _mm512_add_ps(_mm512_loadu_ps(out), sum),
                    Write::Replace => sum,
                };
                _mm512_storeu_ps(out, sum);
            } else {
                let mask = (1_u16 << rows) - 1;
                let sum = match call.write {
                    Write::Add => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum),
                    Write::Replace => sum,
                };
                _mm512_mask_storeu_ps(out, mask, sum);
            }
        }
    }
}

/// All tiles of a call.
///
/// # Safety
/// As [`super::matmul`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tiles<F: Layout>(call: &Call<'_>) {
    let resident = (RESIDENT_BYTES / call.weights.group_bytes()).max(1);
    let mut first = call.groups.start;
    while first < call.groups.end {
        let last = call.groups.end.min(first + resident);
        let mut token = call.tokens.start;
        while token < call.tokens.end {
            let room = PANEL_TOKENS - token % PANEL_TOKENS;
            let left = (call.tokens.end - token).min(room);
            // The least width that holds what is left, or the most that there is room for.
            let widths = [1, 2, 4, 8, 12, 16];
            let fits = widths.into_iter().find(|&width| width >= left && width <= room);
            let width = fits
                .unwrap_or_else(|| widths.into_iter().rfind(|&width| width <= left).unwrap_or(1));
            let valid = left.min(width);
            for group in first..last {
                // SAFETY: tokens and group are the call's; `width` is within the panel.
                unsafe {
                    match width {
                        1 => tile::<F, 1, 1>(call, group, token, valid),
                        2 => tile::<F, 1, 2>(call, group, token, valid),
                        4 => tile::<F, 1, 4>(call, group, token, valid),
                        8 => tile::<F, 2, 4>(call, group, token, valid),
                        12 => tile::<F, 3, 4>(call, group, token, valid),
                        _ => tile::<F, 4, 4>(call, group, token, valid),
                    }
                }
            }
            token += valid;
        }
        first = last;
    }
}

/// # Safety
/// As [`super::matmul`], which checked the sizes; the processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn matmul(call: &Call<'_>) {
    // SAFETY: the caller's.
    unsafe {
        match call.weights.format() {
            Format::Four => tiles::<Four>(call),
            Format::FourMinimum => tiles::<FourMinimum>(call),
            Format::FourWide => tiles::<FourWide>(call),
            Format::Five => tiles::<Five>(call),
            Format::FiveMinimum => tiles::<FiveMinimum>(call),
            Format::FiveWide => tiles::<FiveWide>(call),
            Format::Six => tiles::<Six>(call),
            Format::Eight => tiles::<Eight>(call),
        }
    }
}

/// `count` dot products of registers in 16 independent chains, the activations from memory.
///
/// # Safety
/// The processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn products(count: usize) {
    let values = std::hint::black_box([3_i32; 16]);
    let weights = std::hint::black_box(_mm512_set1_epi8(5));
    let mut sums = [_mm512_setzero_si512(); 16];
    for _ in 0..count / sums.len() {
        // Opaque, so that the loads and products of one round are not lifted out of the loop.
        let values = std::hint::black_box(&raw const values);
        for (j, sum) in sums.iter_mut().enumerate() {
            // SAFETY: one of the 16 values.
            let value = unsafe { (&raw const (*values)[j]).read() };
            *sum = _mm512_dpbusd_epi32(*sum, weights, _mm512_set1_epi32(value));
        }
    }
    std::hint::black_box(sums);
}

/// Quantise `values` into consecutive blocks' `slot`.
///
/// # Safety
/// As many blocks of a panel at `first` as `values` has; nobody else touches these slots; the
/// processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn quantise(first: *mut PanelBlock, slot: usize, values: &[f32]) {
    for (index, x) in values.as_chunks::<BLOCK_COLUMNS>().0.iter().enumerate() {
        // SAFETY: 32 numbers; the block is the caller's.
        unsafe {
            let (a, b) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x[16..].as_ptr()));
            let most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
            let (scale, inverse) = scales(most);
            let inverse = _mm512_set1_ps(inverse);
            let a = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
            let b = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
            let (a, b) = (_mm512_cvtsepi32_epi8(a), _mm512_cvtsepi32_epi8(b));
            let mut quants = [0_i8; BLOCK_COLUMNS];
            _mm_storeu_si128(quants.as_mut_ptr().cast(), a);
            _mm_storeu_si128(quants[16..].as_mut_ptr().cast(), b);
            // Dot products with ones add four; two rounds of neighbours add the rest.
            let ones = _mm_set1_epi8(1);
            let a = _mm_dpbusd_epi32(_mm_setzero_si128(), ones, a);
            let b = _mm_dpbusd_epi32(_mm_setzero_si128(), ones, b);
            let pairs = _mm_hadd_epi32(a, b);
            let both = _mm_cvtsi128_si64(_mm_hadd_epi32(pairs, pairs));
            let (first_sum, last_sum) = (both as i32, (both >> 32) as i32);
            let sums = (scale, first_sum, first_sum + last_sum);
            store(first.add(index), slot, quants, sums);
        }
    }
}
