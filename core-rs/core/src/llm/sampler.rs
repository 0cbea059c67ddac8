//! Choosing the next token from a row of logits, and log-probabilities.
//!
//! In this order: repetition, presence and frequency penalties, logit bias, grammar mask,
//! temperature, top-k, top-p, min-p. The draw at a position depends on the seed and the position
//! alone (Philox, a counter-based generator), so an answer is the same whatever else is served, and
//! a drafted token is accepted exactly when it would have been drawn.
//!
//! Cost: three or four passes over the row; candidates are selected, never the whole row sorted.

use std::collections::HashMap;

use crate::llm::TokenId;
use crate::llm::request::Sampling;
use crate::{Error, Result};

/// Most tokens with a bias of one request.
pub const LOGIT_BIAS_TOKENS_MAX: usize = 1024;
/// Most alternatives reported beside a token.
pub const TOP_LOGPROBS_MAX: usize = 64;
/// A bias of this size forces a token (or, negative, bans it), as `OpenAI` documents it.
pub const LOGIT_BIAS_ABSOLUTE_MAX: f32 = 100.0;

/// Below this the most likely token is taken: dividing by less leaves no other.
const TEMPERATURE_MIN: f32 = 1e-5;
/// Numbers reduced together; fixed, so that sums have the same bits on every processor.
const LANES: usize = 16;
/// Numbers of a chunk whose sum and maximum are kept.
const CHUNK: usize = 64;

/// Buffers shared by all requests of an engine.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Logits after penalties, bias and mask `(vocab)`.
    logits: Vec<f32>,
    /// `exp((logit - max) / temperature)` `(vocab)`.
    weights: Vec<f32>,
    chunk_sums: Vec<f32>,
    chunk_maxima: Vec<f32>,
    order: Vec<f32>,
    candidates: Vec<(f32, TokenId)>,
    buckets: Vec<f64>,
    /// Length of the row the weights are of; they are padded to whole chunks.
    vocab: usize,
}

/// How one request's tokens are chosen.
#[derive(Debug)]
pub struct Sampler {
    settings: Sampling,
    bias: Vec<(TokenId, f32)>,
    banned: Vec<TokenId>,
    forced: Vec<TokenId>,
    /// Tokens of the prompt (0) and how often each was generated; empty if no penalty reads it.
    counts: HashMap<TokenId, u32>,
}

impl Sampler {
    /// Check `settings` against a vocabulary.
    ///
    /// # Errors
    /// [`Error::Input`] if a number is not finite or out of its range.
    pub fn new(settings: &Sampling, vocab: usize) -> Result<Self> {
        let range = |field, value: f32, low: f32, high: f32| {
            if value >= low && value <= high {
                Ok(())
            } else {
                Err(Error::input(field, format!("{value} is not within {low} and {high}")))
            }
        };
        range("temperature", settings.temperature, 0.0, 100.0)?;
        range("top_p", settings.top_p, 0.0, 1.0)?;
        range("min_p", settings.min_p, 0.0, 1.0)?;
        range("presence_penalty", settings.presence_penalty, -100.0, 100.0)?;
        range("frequency_penalty", settings.frequency_penalty, -100.0, 100.0)?;
        range("repetition_penalty", settings.repetition_penalty, 1e-3, 1e3)?;
        if settings.logit_bias.len() > LOGIT_BIAS_TOKENS_MAX {
            return Err(Error::input(
                "logit_bias",
                format!(
                    "{} tokens; at most {LOGIT_BIAS_TOKENS_MAX} are read",
                    settings.logit_bias.len()
                ),
            ));
        }
        let mut sampler = Self {
            settings: settings.clone(),
            bias: Vec::new(),
            banned: Vec::new(),
            forced: Vec::new(),
            counts: HashMap::new(),
        };
        for &(token, bias) in &settings.logit_bias {
            if token as usize >= vocab {
                return Err(Error::input(
                    "logit_bias",
                    format!("token {token} is outside the vocabulary of {vocab}"),
                ));
            }
            range("logit_bias", bias, -LOGIT_BIAS_ABSOLUTE_MAX, LOGIT_BIAS_ABSOLUTE_MAX)?;
            if bias == LOGIT_BIAS_ABSOLUTE_MAX {
                sampler.forced.push(token);
            } else if bias == -LOGIT_BIAS_ABSOLUTE_MAX {
                sampler.banned.push(token);
            } else {
                sampler.bias.push((token, bias));
            }
        }
        Ok(sampler)
    }

    fn penalises(&self) -> bool {
        let settings = &self.settings;
        settings.presence_penalty != 0.0
            || settings.frequency_penalty != 0.0
            || settings.repetition_penalty != 1.0
    }

    /// Tell it the prompt.
    pub fn observe_prompt(&mut self, prompt: &[TokenId]) {
        if self.settings.repetition_penalty != 1.0 {
            for &token in prompt {
                self.counts.entry(token).or_insert(0);
            }
        }
    }

    /// Tell it a generated token.
    pub fn observe(&mut self, token: TokenId) {
        if self.penalises() {
            *self.counts.entry(token).or_insert(0) += 1;
        }
    }

    /// Choose the token at `position` of the sequence from its `logits` `(vocab)`; `mask` has the
    /// bits of the allowed ones. None if no token is allowed.
    ///
    /// # Errors
    /// [`Error::Model`] if a logit is not a number or infinite.
    pub fn choose(
        &self,
        logits: &[f32],
        mask: Option<&[u32]>,
        position: u64,
        scratch: &mut Scratch,
    ) -> Result<Option<TokenId>> {
        let mut best = maximum(logits)?;
        let plain = mask.is_none()
            && self.bias.is_empty()
            && self.banned.is_empty()
            && self.forced.is_empty()
            && self.counts.is_empty();
        let mut adjusted = std::mem::take(&mut scratch.logits);
        let row = if plain {
            logits
        } else {
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(&mut adjusted, mask);
            best = maximum(&adjusted)?;
            &adjusted
        };
        let chosen = if best == f32::NEG_INFINITY {
            None
        } else if self.settings.temperature < TEMPERATURE_MIN || self.settings.top_k == 1 {
            row.iter().position(|&logit| logit == best).map(|token| token as TokenId)
        } else {
            Some(self.draw(row, best, uniform(self.settings.seed, position), scratch))
        };
        scratch.logits = adjusted;
        Ok(chosen)
    }

    fn adjust(&self, row: &mut [f32], mask: Option<&[u32]>) {
        let settings = &self.settings;
        for (&token, &count) in &self.counts {
            let Some(logit) = row.get_mut(token as usize) else { continue };
            if *logit > 0.0 {
                *logit /= settings.repetition_penalty;
            } else {
                *logit *= settings.repetition_penalty;
            }
            if count > 0 {
                *logit -= settings.presence_penalty + settings.frequency_penalty * count as f32;
            }
        }
        for &(token, bias) in &self.bias {
            row[token as usize] += bias;
        }
        for &token in &self.banned {
            row[token as usize] = f32::NEG_INFINITY;
        }
        if let Some(mask) = mask {
            apply_mask(row, mask);
        }
        // Forced tokens leave no other, unless the grammar forbids all of them.
        if self.forced.iter().any(|&token| row[token as usize] > f32::NEG_INFINITY) {
            let kept: Vec<f32> = self.forced.iter().map(|&token| row[token as usize]).collect();
            row.fill(f32::NEG_INFINITY);
            for (&token, logit) in self.forced.iter().zip(kept) {
                row[token as usize] = logit;
            }
        }
    }

    /// The token at the share `u` of the probability that is left after all cut-offs.
    fn draw(&self, row: &[f32], best: f32, u: f64, scratch: &mut Scratch) -> TokenId {
        let settings = &self.settings;
        weigh(row, best, settings.temperature, scratch);
        let total: f64 = scratch.chunk_sums.iter().map(|&sum| f64::from(sum)).sum();
        let cut_k = settings.top_k > 0 && settings.top_k < row.len();
        if !cut_k && settings.top_p >= 1.0 && settings.min_p <= 0.0 {
            return draw_all(scratch, u * total);
        }
        let mut total = total;
        if cut_k {
            let floor = kth_floor(scratch, settings.top_k);
            gather(scratch, floor);
            keep_best(&mut scratch.candidates, settings.top_k);
            total = scratch.candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
        } else if settings.top_p < 1.0 {
            // Most rows reach the share with few tokens; the last floor takes every token.
            for floor in [1.0 / 16.0, 1.0 / 256.0, 1.0 / 65536.0, 0.0] {
                gather(scratch, floor);
                let sum: f64 =
                    scratch.candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
                if sum >= f64::from(settings.top_p) * total {
                    break;
                }
            }
        } else {
            gather(scratch, settings.min_p);
        }
        if settings.top_p < 1.0 {
            keep_share(scratch, f64::from(settings.top_p) * total);
        }
        if settings.min_p > 0.0 {
            // The best token's weight is 1.
            scratch.candidates.retain(|&(weight, _)| weight >= settings.min_p);
        }
        scratch.candidates.retain(|&(weight, _)| weight > 0.0);
        scratch.candidates.sort_unstable_by_key(|&(_, token)| token);
        let kept: f64 = scratch.candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
        let mut left = u * kept;
        let mut chosen = 0;
        for &(weight, token) in &scratch.candidates {
            chosen = token;
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
        chosen
    }
}

/// Log-probability of `chosen` under the raw logits, and the `top` most likely tokens with theirs,
/// best first (of equal ones the lowest id).
///
/// # Errors
/// [`Error::Model`] if a logit is not a number or infinite.
pub fn logprobs(
    logits: &[f32],
    chosen: TokenId,
    top: usize,
    scratch: &mut Scratch,
) -> Result<(f32, Vec<(TokenId, f32)>)> {
    let best = maximum(logits)?;
    weigh(logits, best, 1.0, scratch);
    let total: f64 = scratch.chunk_sums.iter().map(|&sum| f64::from(sum)).sum();
    let normaliser = f64::from(best) + total.ln();
    let logprob = |token: TokenId| (f64::from(logits[token as usize]) - normaliser) as f32;
    let top = top.min(logits.len());
    let mut alternatives = Vec::new();
    if top > 0 {
        let floor = kth_floor(scratch, top);
        gather(scratch, floor);
        // Far tokens may share the weight 0: the logits themselves decide.
        for (value, token) in &mut scratch.candidates {
            *value = logits[*token as usize];
        }
        keep_best(&mut scratch.candidates, top);
        scratch.candidates.sort_unstable_by(best_first);
        alternatives.extend(scratch.candidates.iter().map(|&(_, token)| (token, logprob(token))));
    }
    Ok((logprob(chosen), alternatives))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that sorting takes")]
fn best_first(left: &(f32, TokenId), right: &(f32, TokenId)) -> std::cmp::Ordering {
    right.0.total_cmp(&left.0).then(left.1.cmp(&right.1))
}

/// The largest logit; `-inf` (a banned token) is allowed.
fn maximum(logits: &[f32]) -> Result<f32> {
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut bad = [0_u32; LANES];
    let (blocks, rest) = logits.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            best[lane] = best[lane].max(block[lane]);
            bad[lane] |= u32::from(block[lane].is_nan()) | u32::from(block[lane] == f32::INFINITY);
        }
    }
    for (lane, &logit) in rest.iter().enumerate() {
        best[lane] = best[lane].max(logit);
        bad[lane] |= u32::from(logit.is_nan()) | u32::from(logit == f32::INFINITY);
    }
    if bad != [0; LANES] {
        return Err(Error::model("logits", "the model computed a logit that is not finite"));
    }
    Ok(best.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// Set the logits of tokens without a bit to minus infinity.
fn apply_mask(row: &mut [f32], mask: &[u32]) {
    let mut words = mask.iter().copied();
    for block in row.chunks_mut(32) {
        match words.next().unwrap_or(0) {
            0 => block.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            word => {
                for (bit, logit) in block.iter_mut().enumerate() {
                    *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// Fill `weights`, and the sum and maximum of each chunk.
fn weigh(row: &[f32], best: f32, temperature: f32, scratch: &mut Scratch) {
    let scale = 1.0 / temperature;
    let chunks = row.len().div_ceil(CHUNK);
    scratch.vocab = row.len();
    scratch.weights.clear();
    scratch.weights.resize(chunks * CHUNK, 0.0);
    scratch.chunk_sums.resize(chunks, 0.0);
    scratch.chunk_maxima.resize(chunks, 0.0);
    for (index, logits) in row.chunks(CHUNK).enumerate() {
        let weights = &mut scratch.weights[index * CHUNK..][..CHUNK];
        for (weight, &logit) in weights.iter_mut().zip(logits) {
            *weight = exp_of_negative((logit - best) * scale);
        }
        let mut sums = [0.0_f32; LANES];
        let mut maxima = [0.0_f32; LANES];
        for block in weights.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                sums[lane] += block[lane];
                maxima[lane] = maxima[lane].max(block[lane]);
            }
        }
        scratch.chunk_sums[index] = sums.into_iter().sum();
        scratch.chunk_maxima[index] = maxima.into_iter().fold(0.0, f32::max);
    }
}

/// e^x for x <= 0, to about 1e-7 of its value; 0 below -87. Written so that the compiler makes
/// vector code of it (Cephes' polynomial).
#[inline]
fn exp_of_negative(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves an integer in the low bits
    let clamped = x.max(-87.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = clamped - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let mut series = 1.987_569_2e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        series = series * rest + coefficient;
    }
    let series = series * rest * rest + rest + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let value = series * f32::from_bits(exponent);
    if x < -87.0 { 0.0 } else { value }
}

/// The token at `target` of the summed weights, in the order of tokens.
fn draw_all(scratch: &Scratch, target: f64) -> TokenId {
    let mut left = target;
    let mut last = 0;
    for (index, &sum) in scratch.chunk_sums.iter().enumerate() {
        if sum == 0.0 {
            continue;
        }
        last = index;
        if left < f64::from(sum) {
            break;
        }
        left -= f64::from(sum);
    }
    let mut chosen = 0;
    for (offset, &weight) in scratch.weights[last * CHUNK..][..CHUNK].iter().enumerate() {
        if weight > 0.0 {
            chosen = last * CHUNK + offset;
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
    }
    chosen as TokenId
}

/// A weight that at least `count` tokens reach: the `count`-th of the chunks' maxima.
fn kth_floor(scratch: &mut Scratch, count: usize) -> f32 {
    if count > scratch.chunk_maxima.len() {
        return 0.0;
    }
    scratch.order.clear();
    scratch.order.extend_from_slice(&scratch.chunk_maxima);
    *scratch.order.select_nth_unstable_by(count - 1, |left, right| right.total_cmp(left)).1
}

/// Collect the tokens whose weight is at least `floor`.
fn gather(scratch: &mut Scratch, floor: f32) {
    scratch.candidates.clear();
    for (index, &maximum) in scratch.chunk_maxima.iter().enumerate() {
        if maximum < floor {
            continue;
        }
        let end = ((index + 1) * CHUNK).min(scratch.vocab);
        for (offset, &weight) in scratch.weights[index * CHUNK..end].iter().enumerate() {
            if weight >= floor {
                scratch.candidates.push((weight, (index * CHUNK + offset) as TokenId));
            }
        }
    }
}

/// Keep the `count` best candidates, in any order.
fn keep_best(candidates: &mut Vec<(f32, TokenId)>, count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, best_first);
        candidates.truncate(count);
    }
}

/// Keep the smallest set of best candidates whose weights reach `share`, at least one.
///
/// Weights are in (0, 1], so their exponent and four bits of mantissa sort them into 2,048 buckets;
/// only the bucket in which the share is reached is sorted.
fn keep_share(scratch: &mut Scratch, share: f64) {
    const SHIFT: u32 = 19;
    let bucket = |weight: f32| (weight.to_bits() >> SHIFT) as usize;
    scratch.buckets.clear();
    scratch.buckets.resize(bucket(1.0) + 1, 0.0);
    for &(weight, _) in &scratch.candidates {
        scratch.buckets[bucket(weight)] += f64::from(weight);
    }
    let mut above = 0.0;
    let mut edge = scratch.buckets.len();
    while edge > 0 && (above < share || above == 0.0) {
        edge -= 1;
        above += scratch.buckets[edge];
    }
    let below_edge = above - scratch.buckets[edge];
    let mut border: Vec<(f32, TokenId)> =
        scratch.candidates.iter().copied().filter(|&(weight, _)| bucket(weight) == edge).collect();
    border.sort_unstable_by(best_first);
    scratch.candidates.retain(|&(weight, _)| bucket(weight) > edge);
    let mut sum = below_edge;
    for candidate in border {
        if sum >= share && !scratch.candidates.is_empty() {
            break;
        }
        sum += f64::from(candidate.0);
        scratch.candidates.push(candidate);
    }
}

/// A number in [0, 1) that depends on `seed` and `position` alone.
fn uniform(seed: u64, position: u64) -> f64 {
    let words = philox(
        [position as u32, (position >> 32) as u32, 0, 0],
        [seed as u32, (seed >> 32) as u32],
    );
    let bits = u64::from(words[0]) << 32 | u64::from(words[1]);
    (bits >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::llm::scripted::mix;

    fn noise(seed: u64, vocab: usize, spread: f32) -> Vec<f32> {
        (0..vocab as u64)
            .map(|token| {
                // A sum of four uniform numbers: about normal.
                let part = |shift: u32| (mix(seed, token) >> shift & 0xffff) as f32 / 65536.0 - 0.5;
                (part(0) + part(16) + part(32) + part(48)) * spread
            })
            .collect()
    }

    /// The slow version: sort everything, in f64. Tokens in their order with probabilities.
    fn plain(logits: &[f32], settings: &Sampling) -> Vec<(TokenId, f64)> {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut tokens: Vec<(TokenId, f64)> = logits
            .iter()
            .enumerate()
            .map(|(token, &logit)| {
                let scaled = f64::from(logit - best) / f64::from(settings.temperature);
                (token as TokenId, scaled.exp())
            })
            .filter(|&(_, weight)| weight > 0.0)
            .collect();
        tokens.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
        if settings.top_k > 0 {
            tokens.truncate(settings.top_k);
        }
        let total: f64 = tokens.iter().map(|&(_, weight)| weight).sum();
        if settings.top_p < 1.0 {
            let mut sum = 0.0;
            let share = f64::from(settings.top_p) * total;
            let kept = tokens.iter().take_while(|&&(_, weight)| {
                let before = sum;
                sum += weight;
                before < share
            });
            let kept = kept.count().max(1);
            tokens.truncate(kept);
        }
        let least = f64::from(settings.min_p) * tokens[0].1;
        tokens.retain(|&(_, weight)| weight >= least);
        tokens.sort_by_key(|&(token, _)| token);
        let total: f64 = tokens.iter().map(|&(_, weight)| weight).sum();
        tokens.into_iter().map(|(token, weight)| (token, weight / total)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn a_draw_is_what_the_sorted_twin_would_draw(
            seed in any::<u64>(),
            vocab in 1_usize..900,
            spread in prop_oneof![Just(0.5_f32), Just(6.0), Just(40.0)],
            temperature in prop_oneof![Just(0.3_f32), Just(1.0), Just(2.0)],
            top_k in prop_oneof![Just(0_usize), 1_usize..50, Just(5000)],
            top_p in prop_oneof![Just(1.0_f32), 0.0_f32..1.0],
            min_p in prop_oneof![Just(0.0_f32), 0.0_f32..0.5],
        ) {
            let logits = noise(seed, vocab, spread);
            let settings = Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::default() };
            let sampler = Sampler::new(&settings, vocab).unwrap();
            let mut scratch = Scratch::default();
            let expected = plain(&logits, &settings);
            for position in 0..20 {
                let token = sampler.choose(&logits, None, position, &mut scratch).unwrap().unwrap();
                let u = uniform(seed, position);
                let mut sum = 0.0;
                // At a border, rounding may decide either way.
                let near = expected.iter().any(|&(other, probability)| {
                    sum += probability;
                    other == token && u > sum - probability - 1e-4 && u < sum + 1e-4
                });
                prop_assert!(near, "token {} at {}: {:?}", token, u, expected);
            }
        }

        #[test]
        fn log_probabilities_are_the_logarithm_of_a_softmax(
            seed in any::<u64>(),
            vocab in 1_usize..900,
            spread in prop_oneof![Just(0.5_f32), Just(40.0), Just(400.0)],
            top in 0_usize..64,
        ) {
            let logits = noise(seed, vocab, spread);
            let chosen = (seed % vocab as u64) as TokenId;
            let mut scratch = Scratch::default();
            let (logprob, best) = logprobs(&logits, chosen, top, &mut scratch).unwrap();
            let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - highest).exp()).sum();
            let exact = |token: TokenId| f64::from(logits[token as usize]) - highest - sum.ln();
            prop_assert!((f64::from(logprob) - exact(chosen)).abs() < 1e-4);
            let mut order: Vec<TokenId> = (0..vocab as TokenId).collect();
            order.sort_by(|&left, &right| {
                logits[right as usize].total_cmp(&logits[left as usize]).then(left.cmp(&right))
            });
            order.truncate(top);
            let tokens: Vec<TokenId> = best.iter().map(|&(token, _)| token).collect();
            prop_assert_eq!(tokens, order);
            for (token, logprob) in best {
                prop_assert!((f64::from(logprob) - exact(token)).abs() < 1e-4);
            }
        }

        #[test]
        fn the_exponential_is_exact_to_seven_digits(x in -87.0_f32..=0.0) {
            let (fast, exact) = (f64::from(exp_of_negative(x)), f64::from(x).exp());
            prop_assert!((fast - exact).abs() <= 3e-7 * exact, "{} {} {}", x, fast, exact);
        }
    }

    /// Pearson's statistic of `draws` draws against the probabilities that `settings` leave.
    fn chi_square(settings: &Sampling, draws: u64) -> (f64, usize) {
        let logits = noise(5, 300, 8.0);
        let sampler = Sampler::new(settings, 300).unwrap();
        let mut scratch = Scratch::default();
        let mut counts = vec![0_u32; 300];
        for position in 0..draws {
            let token = sampler.choose(&logits, None, position, &mut scratch).unwrap().unwrap();
            counts[token as usize] += 1;
        }
        let expected = plain(&logits, settings);
        let mut statistic = 0.0;
        let mut cells = 0;
        let (mut rare, mut rare_count) = (0.0, 0.0);
        for &(token, probability) in &expected {
            let mean = probability * draws as f64;
            let count = f64::from(std::mem::take(&mut counts[token as usize]));
            if mean < 10.0 {
                (rare, rare_count) = (rare + mean, rare_count + count);
            } else {
                statistic += (count - mean).powi(2) / mean;
                cells += 1;
            }
        }
        assert!(counts.iter().all(|&count| count == 0), "a token was drawn that was cut off");
        if rare >= 10.0 {
            statistic += (rare_count - rare).powi(2) / rare;
            cells += 1;
        }
        (statistic, cells - 1)
    }

    #[test]
    fn draws_follow_the_distribution() {
        for (seed, top_k, top_p, min_p, temperature) in [
            (1, 0, 1.0, 0.0, 1.0),
            (2, 20, 1.0, 0.0, 1.0),
            (3, 0, 0.9, 0.0, 1.0),
            (4, 0, 1.0, 0.05, 1.5),
            (5, 50, 0.8, 0.01, 0.7),
        ] {
            let settings =
                Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::default() };
            let (statistic, freedom) = chi_square(&settings, 40_000);
            // Mean n and deviation sqrt(2n): four deviations are far beyond one in a thousand.
            let limit = freedom as f64 + 4.0 * (2.0 * freedom as f64).sqrt();
            assert!(statistic < limit, "{statistic} with {freedom} degrees of freedom");
        }
    }

    #[test]
    fn the_generator_gives_the_numbers_of_its_paper() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    fn pick(settings: &Sampling, logits: &[f32], mask: Option<&[u32]>) -> Option<TokenId> {
        let sampler = Sampler::new(settings, logits.len()).unwrap();
        sampler.choose(logits, mask, 3, &mut Scratch::default()).unwrap()
    }

    #[test]
    fn temperature_zero_takes_the_best_and_of_equal_ones_the_first() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(pick(&greedy, &[1.0, 3.0, 3.0, 2.0], None), Some(1));
        assert_eq!(pick(&greedy, &[f32::NEG_INFINITY, -5.0], None), Some(1));
        let tiny = Sampling { temperature: 1e-30, ..Sampling::default() };
        assert_eq!(pick(&tiny, &[1.0, 3.0, 3.0, 2.0], None), Some(1));
    }

    #[test]
    fn a_bias_of_a_hundred_forces_or_bans_and_less_shifts() {
        let logits = [1.0, 90.0, 3.0, 2.0];
        for temperature in [0.0, 1.0] {
            let biased = |logit_bias: &[(TokenId, f32)]| {
                let settings = Sampling {
                    temperature,
                    logit_bias: logit_bias.to_vec(),
                    ..Sampling::default()
                };
                pick(&settings, &logits, None)
            };
            assert_eq!(biased(&[(0, 100.0)]), Some(0));
            assert_eq!(biased(&[(1, -100.0), (2, 30.0)]), Some(2));
            assert_eq!(biased(&[(2, 99.0)]), Some(2));
            assert_eq!(biased(&[(0, -100.0), (1, -100.0), (2, -100.0), (3, -100.0)]), None);
        }
    }

    #[test]
    fn a_mask_allows_only_its_tokens_and_none_is_said_so() {
        let logits = noise(1, 100, 5.0);
        for temperature in [0.0, 1.0] {
            let settings = Sampling { temperature, ..Sampling::default() };
            let mask = [0, 1 << 7, 0, 1 << 2];
            let token = pick(&settings, &logits, Some(&mask)).unwrap();
            assert!(token == 39 || token == 98);
            assert_eq!(pick(&settings, &logits, Some(&[0; 4])), None);
            assert_eq!(pick(&settings, &logits, Some(&[])), None);
        }
        let forced = Sampling { logit_bias: vec![(5, 100.0)], ..Sampling::default() };
        assert_eq!(pick(&forced, &logits, Some(&[1 << 6])), Some(6), "the grammar is stronger");
    }

    #[test]
    fn penalties_push_down_what_was_said() {
        let logits = [2.0, 1.9, -1.0];
        let mut scratch = Scratch::default();
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let mut choose = |settings: Sampling, prompt: &[TokenId], said: &[TokenId]| {
            let mut sampler = Sampler::new(&settings, 3).unwrap();
            sampler.observe_prompt(prompt);
            for &token in said {
                sampler.observe(token);
            }
            sampler.choose(&logits, None, 0, &mut scratch).unwrap().unwrap()
        };
        let presence = Sampling { presence_penalty: 0.2, ..greedy.clone() };
        assert_eq!(choose(presence.clone(), &[], &[0]), 1);
        assert_eq!(choose(presence.clone(), &[0], &[]), 0, "the prompt does not count");
        assert_eq!(choose(presence, &[], &[0, 1]), 0);
        let frequency = Sampling { frequency_penalty: 0.2, ..greedy.clone() };
        assert_eq!(choose(frequency, &[], &[0, 0, 1]), 1);
        let repetition = Sampling { repetition_penalty: 1.2, ..greedy };
        assert_eq!(choose(repetition, &[0], &[]), 1);
    }

    #[test]
    fn logits_that_are_not_numbers_are_refused() {
        let mut scratch = Scratch::default();
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 17, 39] {
                let mut logits = noise(1, 40, 5.0);
                logits[at] = bad;
                for temperature in [0.0, 1.0] {
                    let settings = Sampling { temperature, ..Sampling::default() };
                    let sampler = Sampler::new(&settings, 40).unwrap();
                    assert!(sampler.choose(&logits, None, 0, &mut scratch).is_err());
                }
                assert!(logprobs(&logits, 0, 1, &mut scratch).is_err());
            }
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = Sampling::default();
        for (bad, name) in [
            (Sampling { temperature: f32::NAN, ..good.clone() }, "temperature"),
            (Sampling { temperature: -1.0, ..good.clone() }, "temperature"),
            (Sampling { top_p: 1.1, ..good.clone() }, "top_p"),
            (Sampling { min_p: -0.1, ..good.clone() }, "min_p"),
            (Sampling { repetition_penalty: 0.0, ..good.clone() }, "repetition_penalty"),
            (Sampling { logit_bias: vec![(10, 1.0)], ..good.clone() }, "logit_bias"),
            (Sampling { logit_bias: vec![(1, f32::NAN)], ..good.clone() }, "logit_bias"),
            (Sampling { logit_bias: vec![(1, 1.0); 1025], ..good }, "logit_bias"),
        ] {
            let error = Sampler::new(&bad, 10).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
