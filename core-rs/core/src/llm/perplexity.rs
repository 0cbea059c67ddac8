//! How far a fast model is from the slow one: perplexity and Kullback-Leibler divergence.
//!
//! Equal text is no test of a quantised forward pass: one near tie, and two sound models part ways.
//! The distribution of every next token is. [`compare`] runs both over the same windows of tokens
//! and reports the divergence of the fast one's distributions from the reference's, in nats.

use crate::llm::TokenId;
use crate::llm::forward::{Forward, LogitsFor, Segment};
use crate::llm::kv::{KvPages, PAGE_TOKENS, PageId};
use crate::llm::reference::{Reference, most_likely};
use crate::{Error, Result};

/// How well a model foresees a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// Tokens that were foreseen: all but the first of each window.
    pub tokens: usize,
    /// Mean of minus the logarithm of their probability, nats.
    pub loss: f64,
}

impl Perplexity {
    /// `e` to the loss: the number of equally likely tokens that would be as hard to foresee.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// A model beside the reference on the same text. Divergences are over all distributions, the one
/// after each window's last token too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Of the model.
    pub model: Perplexity,
    /// Of the reference.
    pub reference: Perplexity,
    /// Mean divergence, nats.
    pub divergence_mean: f64,
    /// 99th percentile of the divergence, nats.
    pub divergence_p99: f64,
    /// Largest divergence, nats.
    pub divergence_max: f64,
    /// Share of positions where both find the same token most likely.
    pub agreement: f64,
}

impl Comparison {
    /// Perplexity of the model over that of the reference; 1 is as good.
    pub fn perplexity_ratio(&self) -> f64 {
        (self.model.loss - self.reference.loss).exp()
    }
}

/// Perplexity of `model` over `windows`, each a sequence of its own.
///
/// # Errors
/// [`Error::Input`] if a window has fewer than two tokens or does not fit the model.
pub fn perplexity(model: &mut dyn Forward, windows: &[&[TokenId]]) -> Result<Perplexity> {
    let vocab = model.shape().vocab;
    let mut losses = Losses::default();
    each_window(model, windows, |tokens, logits| {
        losses.add(tokens, logits, vocab);
        Ok(())
    })?;
    Ok(losses.result())
}

/// `model` beside `reference` over `windows`, each a sequence of its own.
///
/// # Errors
/// [`Error::Input`] if a window has fewer than two tokens or does not fit the models, or if their
/// vocabularies differ.
pub fn compare(
    model: &mut dyn Forward,
    reference: &mut Reference<'_>,
    windows: &[&[TokenId]],
) -> Result<Comparison> {
    let vocab = model.shape().vocab;
    if vocab != reference.config().vocab {
        return Err(Error::input("model", "its vocabulary is not the reference's"));
    }
    let (mut of_model, mut of_reference) = (Losses::default(), Losses::default());
    let mut divergences = Vec::new();
    let mut agreed = 0;
    each_window(model, windows, |tokens, logits| {
        reference.clear();
        let expected = reference.logits(tokens)?;
        of_model.add(tokens, logits, vocab);
        of_reference.add(tokens, &expected, vocab);
        for (got, expected) in logits.chunks_exact(vocab).zip(expected.chunks_exact(vocab)) {
            divergences.push(divergence(expected, got));
            agreed += usize::from(most_likely(expected) == most_likely(got));
        }
        Ok(())
    })?;
    divergences.sort_unstable_by(f64::total_cmp);
    let count = divergences.len();
    Ok(Comparison {
        model: of_model.result(),
        reference: of_reference.result(),
        divergence_mean: divergences.iter().sum::<f64>() / count as f64,
        divergence_p99: divergences[(count * 99).div_ceil(100) - 1],
        divergence_max: divergences[count - 1],
        agreement: agreed as f64 / count as f64,
    })
}

/// Hand `each` the logits (tokens, vocab) of every window.
fn each_window(
    model: &mut dyn Forward,
    windows: &[&[TokenId]],
    mut each: impl FnMut(&[TokenId], &[f32]) -> Result<()>,
) -> Result<()> {
    let longest = windows.iter().map(|window| window.len()).max().unwrap_or(0);
    if windows.iter().any(|window| window.len() < 2) || longest == 0 {
        return Err(Error::input("windows", "each needs two tokens, the second to be foreseen"));
    }
    let shape = model.shape().clone();
    let pages_len = longest.div_ceil(PAGE_TOKENS);
    let mut kv = KvPages::new(shape.kv, pages_len * shape.kv.page_bytes())?;
    let pages: Vec<PageId> = std::iter::from_fn(|| kv.allocate()).collect();
    let step_len = shape.step_tokens_max.min(shape.logits_rows_max).max(1);
    let mut logits = Vec::new();
    for window in windows {
        logits.clear();
        for (index, tokens) in window.chunks(step_len).enumerate() {
            let position = index * step_len;
            let segment = Segment { tokens, position, pages: &pages, logits: LogitsFor::All };
            logits.extend_from_slice(model.step(&mut kv, &[segment])?);
        }
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::input("model", "a logit is not finite"));
        }
        each(window, &logits)?;
    }
    Ok(())
}

#[derive(Default)]
struct Losses {
    sum: f64,
    tokens: usize,
}

impl Losses {
    /// The row after each token foresees the next one.
    fn add(&mut self, tokens: &[TokenId], logits: &[f32], vocab: usize) {
        for (row, &next) in logits.chunks_exact(vocab).zip(&tokens[1..]) {
            self.sum += log_sum_exp(row) - f64::from(row[next as usize]);
            self.tokens += 1;
        }
    }

    fn result(&self) -> Perplexity {
        Perplexity { tokens: self.tokens, loss: self.sum / self.tokens as f64 }
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    most + logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum::<f64>().ln()
}

/// Divergence of softmax(`got`) from softmax(`expected`), nats; rounding may leave -1e-16.
fn divergence(expected: &[f32], got: &[f32]) -> f64 {
    let (expected_sum, got_sum) = (log_sum_exp(expected), log_sum_exp(got));
    let terms = expected.iter().zip(got).map(|(&expected, &got)| {
        let log_expected = f64::from(expected) - expected_sum;
        log_expected.exp() * (log_expected - (f64::from(got) - got_sum))
    });
    terms.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::forward::ModelShape;
    use crate::llm::gguf::Gguf;
    use crate::llm::gguf::writer::TinyModel;
    use crate::llm::kv::KvShape;

    /// The reference behind the seam, its logits made `error` times wrong.
    struct Behind<'a> {
        model: Reference<'a>,
        shape: ModelShape,
        error: f32,
        logits: Vec<f32>,
    }

    impl<'a> Behind<'a> {
        fn new(file: &'a Gguf, error: f32) -> Self {
            let model = Reference::new(file, 1).unwrap();
            let config = model.config();
            let shape = ModelShape {
                vocab: config.vocab,
                context: config.context,
                kv: KvShape {
                    layers: config.layers,
                    kv_heads: config.kv_heads,
                    head_dim: config.head_dim,
                },
                step_tokens_max: 7,
                logits_rows_max: 5,
            };
            Self { model, shape, error, logits: Vec::new() }
        }
    }

    impl Forward for Behind<'_> {
        fn shape(&self) -> &ModelShape {
            &self.shape
        }

        fn step(&mut self, _: &mut KvPages, segments: &[Segment<'_>]) -> Result<&[f32]> {
            assert!(segments[0].tokens.len() <= 5, "as many rows as the shape allows");
            self.model.truncate(segments[0].position);
            self.logits = self.model.logits(segments[0].tokens)?;
            for (index, logit) in self.logits.iter_mut().enumerate() {
                *logit += self.error * (index as f32).sin();
            }
            Ok(&self.logits)
        }
    }

    const WINDOWS: [&[TokenId]; 2] =
        [&[3, 41, 159, 26, 53, 58, 97, 93, 23, 84, 62, 64], &[2, 71, 82, 81]];

    #[test]
    fn a_model_is_no_distance_from_itself() {
        let file = TinyModel::default().gguf().unwrap();
        let mut reference = Reference::new(&file, 1).unwrap();
        let same = compare(&mut Behind::new(&file, 0.0), &mut reference, &WINDOWS).unwrap();
        assert_eq!(same.model.tokens, 14);
        assert_eq!((same.divergence_max, same.agreement), (0.0, 1.0));
        assert_eq!(same.perplexity_ratio(), 1.0);
        let alone = perplexity(&mut Behind::new(&file, 0.0), &WINDOWS).unwrap();
        assert_eq!(alone, same.reference);
    }

    #[test]
    fn distance_grows_with_the_error() {
        let file = TinyModel::default().gguf().unwrap();
        let mut reference = Reference::new(&file, 1).unwrap();
        let mut at = |error| compare(&mut Behind::new(&file, error), &mut reference, &WINDOWS);
        let (near, far) = (at(0.01).unwrap(), at(0.1).unwrap());
        // To second order the divergence is half the variance of the error: 0.01² / 4.
        assert!((near.divergence_mean / 2.5e-5 - 1.0).abs() < 0.3, "{near:?}");
        assert!((far.divergence_mean / near.divergence_mean / 100.0 - 1.0).abs() < 0.1, "{far:?}");
        assert!(
            far.divergence_mean <= far.divergence_p99 && far.divergence_p99 <= far.divergence_max
        );
    }

    #[test]
    fn a_uniform_guess_has_the_perplexity_of_its_vocabulary() {
        let mut losses = Losses::default();
        losses.add(&[0, 1, 2], &[0.5; 3 * 8], 8);
        assert!((losses.result().perplexity() - 8.0).abs() < 1e-9);
    }

    #[test]
    fn windows_without_anything_to_foresee_are_refused() {
        let file = TinyModel::default().gguf().unwrap();
        let mut model = Behind::new(&file, 0.0);
        assert!(perplexity(&mut model, &[&[1]]).is_err());
        assert!(perplexity(&mut model, &[]).is_err());
    }
}
