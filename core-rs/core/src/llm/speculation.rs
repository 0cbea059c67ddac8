//! Guessing the next tokens by prompt lookup: where the last tokens occurred before, in the prompt
//! or the answer, what followed them then is proposed again. Echoed code, quoted text and repeated
//! structure come out several tokens a step.
//!
//! A guess never changes an answer: each guessed token is kept only if it is the one that would
//! have been chosen (see [`crate::llm::sampler`]).

use std::collections::HashMap;

use crate::llm::TokenId;

/// Most tokens guessed at once.
pub const DRAFT_TOKENS_MAX: usize = 8;
/// Sequences decoding together beyond which nothing is guessed: a larger batch uses the processor
/// well without.
pub const SPECULATION_BATCH_MAX: usize = 4;

/// Tokens that must be equal for a guess.
const KEY_TOKENS: usize = 3;
/// Earlier places looked at.
const PLACES_MAX: usize = 8;
/// Longest common past that is measured.
const PAST_TOKENS_MAX: usize = 32;
/// Wholly wrong guesses in a row before a rest, and the longest rest in steps.
const MISSES_MAX: u32 = 3;
const REST_STEPS_MAX: u32 = 32;

/// Where each sequence of three tokens ended in one request's tokens, and how well guesses went.
#[derive(Debug)]
pub struct PromptLookup {
    last: HashMap<[TokenId; KEY_TOKENS], u32>,
    /// For each end, the one before it with the same tokens; 0 is none.
    before: Vec<u32>,
    length: usize,
    misses: u32,
    rest: u32,
}

impl Default for PromptLookup {
    fn default() -> Self {
        Self {
            last: HashMap::new(),
            before: vec![0; KEY_TOKENS],
            length: DRAFT_TOKENS_MAX / 2,
            misses: 0,
            rest: 0,
        }
    }
}

impl PromptLookup {
    /// Put a guess of at most `most` tokens behind `tokens` into `draft`; often none.
    ///
    /// `tokens` must begin with those of the call before.
    pub fn guess(&mut self, tokens: &[TokenId], most: usize, draft: &mut Vec<TokenId>) {
        draft.clear();
        // An end is indexed as soon as something follows it.
        for end in self.before.len()..tokens.len() {
            let before = self.last.insert(key(tokens, end), end as u32).unwrap_or(0);
            self.before.push(before);
        }
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        if tokens.len() < KEY_TOKENS || most == 0 {
            return;
        }
        let mut end = self.last.get(&key(tokens, tokens.len())).copied().unwrap_or(0) as usize;
        let mut best = (0, 0);
        for _ in 0..PLACES_MAX {
            if end == 0 {
                break;
            }
            let past = common_past(&tokens[..end], tokens);
            if past > best.0 {
                best = (past, end);
            }
            end = self.before[end] as usize;
        }
        let (past, end) = best;
        if past < KEY_TOKENS {
            return;
        }
        // A longer common past is worth a longer guess.
        let period = tokens.len() - end;
        for offset in 0..most.min(self.length).min(past) {
            // What repeats itself up to the end goes on repeating.
            draft.push(tokens[end + offset % period]);
        }
    }

    /// Learn how many of the `proposed` tokens were right.
    pub fn learn(&mut self, proposed: usize, accepted: usize) {
        if proposed == 0 {
            return;
        }
        if accepted > 0 {
            self.misses = 0;
            self.length = if accepted == proposed {
                (self.length * 2).min(DRAFT_TOKENS_MAX)
            } else {
                (accepted + 1).min(DRAFT_TOKENS_MAX)
            };
        } else {
            self.length = (self.length / 2).max(1);
            self.misses += 1;
            if self.misses >= MISSES_MAX {
                let exponent = (self.misses - MISSES_MAX).min(5);
                self.rest = (2 << exponent).min(REST_STEPS_MAX);
            }
        }
    }
}

fn key(tokens: &[TokenId], end: usize) -> [TokenId; KEY_TOKENS] {
    std::array::from_fn(|offset| tokens[end - KEY_TOKENS + offset])
}

fn common_past(earlier: &[TokenId], tokens: &[TokenId]) -> usize {
    let pairs = earlier.iter().rev().zip(tokens.iter().rev());
    pairs.take(PAST_TOKENS_MAX).take_while(|(left, right)| left == right).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_same_tokens_before_is_guessed() {
        let mut lookup = PromptLookup::default();
        let mut draft = Vec::new();
        lookup.guess(&[1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3], 8, &mut draft);
        assert_eq!(draft, [4, 5, 6]);
        lookup.guess(&[1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3, 4], 8, &mut draft);
        assert_eq!(draft, [5, 6, 7, 9]);
    }

    #[test]
    fn the_place_with_the_longest_common_past_is_taken() {
        let mut lookup = PromptLookup::default();
        let mut draft = Vec::new();
        lookup.guess(&[8, 1, 2, 3, 4, 9, 1, 2, 3, 5, 8, 1, 2, 3], 8, &mut draft);
        assert_eq!(draft[0], 4);
    }

    #[test]
    fn a_loop_is_guessed_to_go_on() {
        let mut lookup = PromptLookup::default();
        let mut draft = Vec::new();
        lookup.guess(&[1, 2, 1, 2, 1, 2, 1, 2, 1, 2], 4, &mut draft);
        assert_eq!(draft, [1, 2, 1, 2]);
    }

    #[test]
    fn wrong_guesses_become_shorter_and_then_rest() {
        let mut lookup = PromptLookup::default();
        let tokens = [1, 2, 3, 4, 5, 6, 1, 2, 3];
        let mut draft = Vec::new();
        for _ in 0..MISSES_MAX {
            lookup.guess(&tokens, 8, &mut draft);
            assert!(!draft.is_empty());
            lookup.learn(draft.len(), 0);
        }
        lookup.guess(&tokens, 8, &mut draft);
        assert!(draft.is_empty());
        lookup.guess(&tokens, 8, &mut draft);
        lookup.guess(&tokens, 8, &mut draft);
        assert_eq!(draft.len(), 1);
        lookup.learn(1, 1);
        lookup.guess(&tokens, 8, &mut draft);
        assert_eq!(draft.len(), 2);
    }

    #[test]
    fn short_and_new_texts_have_no_guess() {
        let mut lookup = PromptLookup::default();
        let mut draft = vec![7];
        lookup.guess(&[1, 2], 8, &mut draft);
        assert!(draft.is_empty());
        lookup.guess(&[1, 2, 3, 4, 5], 8, &mut draft);
        assert!(draft.is_empty());
    }
}
