//! AVX2: one register is 8 rows, so a group is two; with AVX-VNNI where the processor has it.
//!
//! A block is unpacked once for up to 16 tokens into 512 bytes on the stack, then four tokens at a
//! time pass over it.
//!
//! # No sum saturates
//! Without VNNI, `vpmaddubsw` adds two products of an unsigned and a signed byte into 16 signed
//! bits, saturating at 32,767, and sums of such pairs are 16 bits too, until `vpmaddwd` widens
//! them. Activations are at most 127 in magnitude, so pairs of
//! - 4-bit quanta are at most `2 * 15 * 127 = 3,810`: all eight of a block fit (30,480);
//! - 5-bit quanta are at most `2 * 31 * 127 = 7,874`: four fit (31,496);
//! - 6-bit quanta are at most `2 * 63 * 127 = 16,002`: two fit (32,004);
//! - 8-bit weights `q - 128` go in by magnitude, at most 128, their sign moved to the activation:
//!   `2 * 128 * 127 = 32,512`: one fits. (As unsigned quanta they would not: `2 * 255 * 127`.)

use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T0, _mm_load_si128, _mm_prefetch, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_add_ps, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_dpbusd_avx_epi32,
    _mm256_fmadd_ps, _mm256_load_ps, _mm256_load_si256, _mm256_loadu_ps, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8,
    _mm256_slli_epi16, _mm256_srli_epi16, _mm256_store_si256, _mm256_storeu_ps, _mm256_xor_si256,
};

use super::activations::PanelBlock;
use super::matrix::Format;
use super::{BLOCK_COLUMNS, Call, GROUP_ROWS, PANEL_TOKENS, PREFETCH_BYTES, Write};

/// A block's quanta, one vector of 64 bytes for every four columns.
#[repr(align(64))]
struct Unpacked([[u8; 64]; 8]);

/// How many pairs of products a 16-bit sum takes.
const fn pairs_max(format: Format) -> usize {
    match format {
        Format::Four | Format::FourMinimum | Format::FourWide => 8,
        Format::Five | Format::FiveMinimum | Format::FiveWide => 4,
        Format::Six => 2,
        Format::Eight => 1,
    }
}

/// Half (`0` or `1`) of the line `line` of 64 bytes.
///
/// # Safety
/// The line exists and begins on 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_line(from: *const u8, line: usize, half: usize) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_load_si256(from.add(64 * line + 32 * half).cast()) }
}

/// Unpack a block of quanta.
///
/// # Safety
/// `from` is the beginning of a block's quanta.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack(format: Format, from: *const u8, to: &mut Unpacked) {
    let low = _mm256_set1_epi8(15);
    for half in 0..2 {
        for j in 0..4 {
            // SAFETY: all lines named below are the format's; `to` has eight aligned ones.
            unsafe {
                let to = to.0.as_mut_ptr().cast::<u8>().add(64 * j + 32 * half);
                if format == Format::Eight {
                    _mm256_store_si256(to.cast(), half_line(from, j, half));
                    _mm256_store_si256(to.add(256).cast(), half_line(from, j + 4, half));
                    continue;
                }
                let packed = half_line(from, j, half);
                let mut first = _mm256_and_si256(packed, low);
                let mut last = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low);
                if format.quanta_bytes() == 320 {
                    let high = half_line(from, 4, half);
                    let bit = _mm256_set1_epi8(16);
                    let (one, two) = match j {
                        0 => (_mm256_slli_epi16::<4>(high), high),
                        1 => (_mm256_slli_epi16::<3>(high), _mm256_srli_epi16::<1>(high)),
                        2 => (_mm256_slli_epi16::<2>(high), _mm256_srli_epi16::<2>(high)),
                        _ => (_mm256_slli_epi16::<1>(high), _mm256_srli_epi16::<3>(high)),
                    };
                    first = _mm256_or_si256(first, _mm256_and_si256(one, bit));
                    last = _mm256_or_si256(last, _mm256_and_si256(two, bit));
                } else if format == Format::Six {
                    let bits = _mm256_set1_epi8(48);
                    let shifted = |high| match j {
                        0 => _mm256_slli_epi16::<4>(high),
                        1 => _mm256_slli_epi16::<2>(high),
                        2 => high,
                        _ => _mm256_srli_epi16::<2>(high),
                    };
                    let one = shifted(half_line(from, 4, half));
                    let two = shifted(half_line(from, 5, half));
                    first = _mm256_or_si256(first, _mm256_and_si256(one, bits));
                    last = _mm256_or_si256(last, _mm256_and_si256(two, bits));
                }
                _mm256_store_si256(to.cast(), first);
                _mm256_store_si256(to.add(256).cast(), last);
            }
        }
    }
}

/// Eight rows' scales (first, or second row of them) of a block.
///
/// # Safety
/// `from` is the beginning of a block's scales, and the format has such a row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales(format: Format, from: *const u8, second: bool, half: usize) -> __m256 {
    // SAFETY: the caller's.
    unsafe {
        if format.scales_bytes() == 128 {
            _mm256_load_ps(from.add(64 * usize::from(second) + 32 * half).cast())
        } else {
            let at = from.add(32 * usize::from(second) + 16 * half);
            _mm256_cvtph_ps(_mm_load_si128(at.cast()))
        }
    }
}

/// One token's integer sums with 8 rows: of the first 16 columns, and of the rest.
///
/// # Safety
/// 32 bytes at `values`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<const N: usize>(
    format: Format,
    quanta: &Unpacked,
    half: usize,
    values: [*const u8; N],
) -> [[__m256i; 2]; N] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_si256(); 2]; N];
    let pairs = pairs_max(format);
    let mut j = 0;
    while j < 8 {
        let mut narrow = [_mm256_setzero_si256(); N];
        let side = j / 4;
        for _ in 0..pairs {
            // SAFETY: eight vectors of quanta, eight times four columns.
            unsafe {
                let mut w = half_line(quanta.0.as_ptr().cast(), j, half);
                let mut signs = w;
                if format == Format::Eight {
                    signs = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                    w = _mm256_sign_epi8(signs, signs);
                }
                for t in 0..N {
                    let four = values[t].add(4 * j).cast::<i32>().read_unaligned();
                    let mut a = _mm256_set1_epi32(four);
                    if format == Format::Eight {
                        a = _mm256_sign_epi8(a, signs);
                    }
                    narrow[t] = _mm256_add_epi16(narrow[t], _mm256_maddubs_epi16(w, a));
                }
            }
            j += 1;
        }
        for t in 0..N {
            let wide = _mm256_madd_epi16(narrow[t], ones);
            sums[t][side] = _mm256_add_epi32(sums[t][side], wide);
        }
    }
    sums
}

/// The same with VNNI, of quanta as they are (8-bit ones unsigned).
///
/// # Safety
/// 32 bytes at `values`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn dots_vnni<const N: usize>(
    quanta: &Unpacked,
    half: usize,
    values: [*const u8; N],
) -> [[__m256i; 2]; N] {
    let mut sums = [[_mm256_setzero_si256(); 2]; N];
    for j in 0..8 {
        // SAFETY: eight vectors of quanta, eight times four columns.
        unsafe {
            let w = half_line(quanta.0.as_ptr().cast(), j, half);
            for t in 0..N {
                let four = values[t].add(4 * j).cast::<i32>().read_unaligned();
                let sum = &mut sums[t][j / 4];
                *sum = _mm256_dpbusd_avx_epi32(*sum, w, _mm256_set1_epi32(four));
            }
        }
    }
    sums
}

/// One block of `N` tokens from `slot` on.
///
/// # Safety
/// A block of activations and its scales; `slot + N` at most 16; the processor has AVX-VNNI if
/// `VNNI`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few<const VNNI: bool, const N: usize>(
    format: Format,
    quanta: &Unpacked,
    scales_at: *const u8,
    panel: *const PanelBlock,
    slot: usize,
    sums: &mut [[__m256; 2]],
) {
    // SAFETY: the caller's.
    unsafe {
        // Pointers, since checked indices would cut the tile into branches.
        let first = (&raw const (*panel).values).cast::<u8>().add(slot * BLOCK_COLUMNS);
        let values: [*const u8; N] = std::array::from_fn(|t| first.wrapping_add(t * BLOCK_COLUMNS));
        let activations = (&raw const (*panel).scales).cast::<f32>().add(slot);
        let totals = (&raw const (*panel).sums).cast::<f32>().add(slot);
        let offsets = (&raw const (*panel).offsets).cast::<i32>().add(slot);
        let halves = (&raw const (*panel).halves).cast::<i32>().add(slot);
        let both = [0, 1].map(|half| scales(format, scales_at, false, half));
        for (half, scale) in both.into_iter().enumerate() {
            let integers = if VNNI {
                dots_vnni::<N>(quanta, half, values)
            } else {
                dots::<N>(format, quanta, half, values)
            };
            for (t, &[first, last]) in integers.iter().enumerate() {
                let sum = &mut sums[t][half];
                let activation = _mm256_set1_ps(*activations.add(t));
                let product = _mm256_mul_ps(scale, activation);
                if format == Format::Six {
                    let offset = *offsets.add(t) / 4;
                    let first_offset = *halves.add(t);
                    let last_offset = _mm256_set1_epi32(offset - first_offset);
                    let first = _mm256_add_epi32(first, _mm256_set1_epi32(first_offset));
                    let last = _mm256_add_epi32(last, last_offset);
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(first), product, *sum);
                    let second = scales(format, scales_at, true, half);
                    let product = _mm256_mul_ps(second, activation);
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(last), product, *sum);
                    continue;
                }
                let mut total = _mm256_add_epi32(first, last);
                let offset = *offsets.add(t);
                total = match format {
                    Format::Four => _mm256_add_epi32(total, _mm256_set1_epi32(offset / 16)),
                    Format::Five => _mm256_add_epi32(total, _mm256_set1_epi32(offset / 8)),
                    Format::Eight if VNNI => _mm256_add_epi32(total, _mm256_set1_epi32(offset)),
                    _ => total,
                };
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), product, *sum);
                if format.zero() == 0 {
                    let minimum = scales(format, scales_at, true, half);
                    let token = _mm256_set1_ps(*totals.add(t));
                    *sum = _mm256_fmadd_ps(minimum, token, *sum);
                }
            }
        }
    }
}

/// One group of rows by `count` tokens of a panel, from `token` on.
///
/// # Safety
/// As [`super::matmul`]; the tokens are in one panel; the processor has AVX-VNNI if `VNNI`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const VNNI: bool>(call: &Call<'_>, group: usize, token: usize, count: usize) {
    let format = call.weights.format();
    let bytes = format.quanta_bytes() + format.scales_bytes();
    let mut sums = [[_mm256_setzero_ps(); 2]; PANEL_TOKENS];
    let (quanta, scales) = call.weights.group(group);
    let (mut quanta, mut scales) = (quanta.as_ptr(), scales.as_ptr());
    let mut ahead = quanta.wrapping_add(PREFETCH_BYTES);
    let mut panel = call.activations.block(token, 0).cast_const();
    let slot = token % PANEL_TOKENS;
    let mut unpacked = Unpacked([[0; 64]; 8]);
    for _ in 0..call.weights.blocks() {
        // SAFETY: the pointers walk over the blocks of the group and of the panel. A prefetch may
        // name any address.
        unsafe {
            for line in (0..bytes).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line).cast());
            }
            ahead = ahead.wrapping_add(bytes);
            unpack(format, quanta, &mut unpacked);
            let mut t = 0;
            while t < count {
                let (at, sums) = (slot + t, &mut sums[t..]);
                if count - t >= 4 {
                    few::<VNNI, 4>(format, &unpacked, scales, panel, at, sums);
                    t += 4;
                } else {
                    few::<VNNI, 1>(format, &unpacked, scales, panel, at, sums);
                    t += 1;
                }
            }
            quanta = quanta.add(format.quanta_bytes());
            scales = scales.add(format.scales_bytes());
            panel = panel.add(1);
        }
    }
    for (t, sums) in sums.iter().enumerate().take(count) {
        // SAFETY: `count` tokens are the call's, and `rows` numbers of each.
        unsafe {
            let (out, rows) = call.out_at(token + t, group);
            if rows == GROUP_ROWS {
                for (half, &sum) in sums.iter().enumerate() {
                    let out = out.add(8 * half);
                    let sum = match call.write {
                        Write::Add => _mm256_add_ps(_mm256_loadu_ps(out), sum),
                        Write::Replace => sum,
                    };
                    _mm256_storeu_ps(out, sum);
                }
            } else {
                let mut lanes = [0.0_f32; GROUP_ROWS];
                _mm256_storeu_ps(lanes.as_mut_ptr(), sums[0]);
                _mm256_storeu_ps(lanes[8..].as_mut_ptr(), sums[1]);
                for (row, &sum) in lanes.iter().enumerate().take(rows) {
                    let out = out.add(row);
                    *out = if call.write == Write::Add { *out + sum } else { sum };
                }
            }
        }
    }
}

/// # Safety
/// As [`super::matmul`], which checked the sizes; the processor has the instructions.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn matmul(call: &Call<'_>) {
    // SAFETY: the caller's.
    unsafe { tiles::<false>(call) }
}

/// The same with VNNI.
///
/// # Safety
/// As [`super::matmul`], which checked the sizes; the processor has the instructions.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub unsafe fn matmul_vnni(call: &Call<'_>) {
    // SAFETY: the caller's.
    unsafe { tiles::<true>(call) }
}

/// All tiles of a call. Inlined, so that everything below gets its caller's instructions.
///
/// # Safety
/// As [`super::matmul`]; the processor has AVX-VNNI if `VNNI`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tiles<const VNNI: bool>(call: &Call<'_>) {
    let mut token = call.tokens.start;
    while token < call.tokens.end {
        let count = (PANEL_TOKENS - token % PANEL_TOKENS).min(call.tokens.end - token);
        for group in call.groups.clone() {
            // SAFETY: tokens and group are the call's.
            unsafe { tile::<VNNI>(call, group, token, count) }
        }
        token += count;
    }
}

/// `count` pairwise products of registers in eight independent chains, the activations from
/// memory.
///
/// # Safety
/// The processor has the instructions.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn products(count: usize) {
    let values = std::hint::black_box([3_i32; 8]);
    let weights = std::hint::black_box(_mm256_set1_epi8(5));
    let mut sums = [_mm256_setzero_si256(); 8];
    for _ in 0..count / sums.len() {
        let values = std::hint::black_box(&raw const values);
        for (j, sum) in sums.iter_mut().enumerate() {
            // SAFETY: one of the eight values.
            let value = _mm256_set1_epi32(unsafe { (&raw const (*values)[j]).read() });
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(weights, value));
        }
    }
    std::hint::black_box(sums);
}

/// The same with VNNI.
///
/// # Safety
/// The processor has the instructions.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub unsafe fn products_vnni(count: usize) {
    let values = std::hint::black_box([3_i32; 8]);
    let weights = std::hint::black_box(_mm256_set1_epi8(5));
    let mut sums = [_mm256_setzero_si256(); 8];
    for _ in 0..count / sums.len() {
        let values = std::hint::black_box(&raw const values);
        for (j, sum) in sums.iter_mut().enumerate() {
            // SAFETY: one of the eight values.
            let value = _mm256_set1_epi32(unsafe { (&raw const (*values)[j]).read() });
            *sum = _mm256_dpbusd_avx_epi32(*sum, weights, value);
        }
    }
    std::hint::black_box(sums);
}
