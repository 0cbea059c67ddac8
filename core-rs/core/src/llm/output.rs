//! From tokens to text that may be sent: whole characters only, and never a part of a stop text.
//!
//! Bytes wait here until it is certain what they are. Invalid UTF-8 becomes U+FFFD as
//! [`String::from_utf8_lossy`] has it, an incomplete character at the very end too.

use std::collections::VecDeque;

use crate::llm::request::ChosenToken;
use crate::{Error, Result};

/// Most stop texts of one request.
pub const STOP_TEXTS_MAX: usize = 16;
/// Longest stop text in bytes.
pub const STOP_BYTES_MAX: usize = 1024;

/// A stop text and how much of it the output ends with (Knuth, Morris and Pratt).
#[derive(Debug)]
struct StopText {
    text: String,
    /// For each length of a match, the next shorter one that ends at the same byte.
    fallback: Vec<usize>,
    matched: usize,
}

impl StopText {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut length = 0;
        for end in 1..bytes.len() {
            while length > 0 && bytes[end] != bytes[length] {
                length = fallback[length];
            }
            length += usize::from(bytes[end] == bytes[length]);
            fallback[end + 1] = length;
        }
        Self { text: text.to_owned(), fallback, matched: 0 }
    }

    /// Take a byte; true if the text is complete.
    fn push(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
        self.matched == bytes.len()
    }
}

/// A token whose text is not sent yet, or only in part.
#[derive(Debug)]
struct Held {
    /// Where its bytes begin and end among the pending ones.
    start: usize,
    end: usize,
    chosen: Option<ChosenToken>,
}

/// Text that may be sent.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    /// Whole characters.
    pub text: String,
    /// Tokens completed by it.
    pub tokens: usize,
    /// Log-probabilities of these tokens, if asked for.
    pub logprobs: Vec<ChosenToken>,
}

/// The output of one request.
#[derive(Debug)]
pub struct Output {
    stops: Vec<StopText>,
    pending: Vec<u8>,
    held: VecDeque<Held>,
    stopped: bool,
}

impl Output {
    /// An empty output that ends at one of `stop`.
    ///
    /// # Errors
    /// [`Error::Input`] if there are more than [`STOP_TEXTS_MAX`] stop texts, or one is empty or
    /// longer than [`STOP_BYTES_MAX`].
    pub fn new(stop: &[String]) -> Result<Self> {
        if stop.len() > STOP_TEXTS_MAX {
            return Err(Error::input(
                "stop",
                format!("{} texts; at most {STOP_TEXTS_MAX} are read", stop.len()),
            ));
        }
        if let Some(text) = stop.iter().find(|text| text.is_empty() || text.len() > STOP_BYTES_MAX)
        {
            return Err(Error::input(
                "stop",
                format!("a text of {} bytes; 1 to {STOP_BYTES_MAX} are read", text.len()),
            ));
        }
        Ok(Self {
            stops: stop.iter().map(|text| StopText::new(text)).collect(),
            pending: Vec::new(),
            held: VecDeque::new(),
            stopped: false,
        })
    }

    /// Take a token's bytes. Returns the stop text they complete, if any: the one that is complete
    /// first, the longest of several; it and what follows are dropped.
    pub fn push(&mut self, bytes: &[u8], chosen: Option<ChosenToken>) -> Option<String> {
        debug_assert!(!self.stopped, "Invariant: nothing follows a stop text");
        let start = self.pending.len();
        for &byte in bytes {
            self.pending.push(byte);
            let mut complete: Option<usize> = None;
            for stop in &mut self.stops {
                if stop.push(byte) {
                    complete = complete.max(Some(stop.text.len()));
                }
            }
            if let Some(length) = complete {
                return Some(self.stop(start, length, chosen));
            }
        }
        self.held.push_back(Held { start, end: self.pending.len(), chosen });
        None
    }

    fn stop(&mut self, start: usize, length: usize, chosen: Option<ChosenToken>) -> String {
        let cut = self.pending.len() - length;
        let text = String::from_utf8_lossy(&self.pending[cut..]).into_owned();
        self.pending.truncate(cut);
        self.held.push_back(Held { start, end: cut, chosen });
        self.held.retain(|token| token.start < cut);
        self.stopped = true;
        text
    }

    /// What may be sent now; all of it if this is the `end`. None if there is nothing to say.
    pub fn take(&mut self, end: bool) -> Option<Piece> {
        let length = if end || self.stopped { self.pending.len() } else { self.certain() };
        let mut piece = Piece::default();
        if length > 0 {
            piece.text = String::from_utf8_lossy(&self.pending[..length]).into_owned();
            self.pending.drain(..length);
        }
        let chosen = self.held.front().is_some_and(|token| token.chosen.is_some());
        if length == 0 && !chosen && !end {
            return None;
        }
        while self.held.front().is_some_and(|token| end || token.end <= length) {
            piece.tokens += 1;
            piece.logprobs.extend(self.held.pop_front().and_then(|token| token.chosen));
        }
        for token in &mut self.held {
            token.start = token.start.saturating_sub(length);
            token.end = token.end.saturating_sub(length);
        }
        (!piece.text.is_empty() || !piece.logprobs.is_empty()).then_some(piece)
    }

    /// Number of pending bytes that can be neither the beginning of a stop text nor of a character
    /// whose end is still to come.
    fn certain(&self) -> usize {
        let matched = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        if matched > 0 {
            // A stop text begins with the first byte of a character, so all before it is complete.
            return self.pending.len() - matched.min(self.pending.len());
        }
        let mut rest = self.pending.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let Some(invalid) = error.error_len() else {
                return self.pending.len() - (rest.len() - error.valid_up_to());
            };
            rest = &rest[error.valid_up_to() + invalid..];
        }
        self.pending.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::llm::request::TokenLogprob;

    /// The slow version: what the whole byte sequence amounts to.
    fn plain(bytes: &[u8], stops: &[String]) -> (String, Option<String>) {
        for end in 1..=bytes.len() {
            let complete = stops.iter().filter(|stop| bytes[..end].ends_with(stop.as_bytes()));
            if let Some(stop) = complete.max_by_key(|stop| stop.len()) {
                let cut = end - stop.len();
                return (String::from_utf8_lossy(&bytes[..cut]).into_owned(), Some(stop.clone()));
            }
        }
        (String::from_utf8_lossy(bytes).into_owned(), None)
    }

    fn spoken(tokens: &[Vec<u8>], stops: &[String]) -> (String, Option<String>, Vec<String>) {
        let mut output = Output::new(stops).unwrap();
        let mut text = String::new();
        let mut states = Vec::new();
        let mut stop = None;
        for token in tokens {
            stop = output.push(token, None);
            if stop.is_some() {
                break;
            }
            text.extend(output.take(false).map(|piece| piece.text));
            states.push(text.clone());
        }
        text.extend(output.take(true).map(|piece| piece.text));
        (text, stop, states)
    }

    fn any_tokens() -> impl Strategy<Value = Vec<Vec<u8>>> {
        // Pieces of ASCII, of two- to four-byte characters, and bytes that are never valid.
        let byte = prop::sample::select(b"aab\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xff".to_vec());
        prop::collection::vec(prop::collection::vec(byte, 0..5), 0..20)
    }

    fn any_stops() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("[ab\u{e9}\u{20ac}\u{1f600}]{1,4}", 0..4)
    }

    proptest! {
        #[test]
        fn any_cut_into_tokens_gives_the_same_text(
            tokens in any_tokens(),
            stops in any_stops(),
        ) {
            let (text, stop, states) = spoken(&tokens, &stops);
            let (expected, expected_stop) = plain(&tokens.concat(), &stops);
            prop_assert_eq!(&text, &expected);
            prop_assert_eq!(stop, expected_stop);
            for state in states {
                prop_assert!(text.starts_with(&state), "{:?} was sent of {:?}", state, text);
            }
        }

        #[test]
        fn text_is_sent_as_soon_as_it_is_certain(tokens in any_tokens()) {
            let (text, _, states) = spoken(&tokens, &[]);
            if let (Some(last), true) = (states.last(), std::str::from_utf8(&tokens.concat()).is_ok()) {
                prop_assert_eq!(last, &text);
            }
        }
    }

    #[test]
    fn a_stop_text_over_several_tokens_is_held_back_and_dropped() {
        let mut output = Output::new(&["\n\nUser:".to_owned()]).unwrap();
        assert_eq!(output.push(b"Hello\n", None), None);
        assert_eq!(output.take(false).unwrap().text, "Hello");
        assert_eq!(output.push(b"\nUs", None), None);
        assert_eq!(output.take(false), None);
        assert_eq!(output.push(b"er: x", None), Some("\n\nUser:".to_owned()));
        assert_eq!(output.take(true), None);
    }

    #[test]
    fn what_only_looked_like_a_stop_text_is_sent_later() {
        let mut output = Output::new(&["abc".to_owned()]).unwrap();
        output.push(b"xab", None);
        let first = output.take(false).unwrap();
        assert_eq!((first.text.as_str(), first.tokens), ("x", 0));
        output.push(b"d", None);
        let second = output.take(false).unwrap();
        assert_eq!((second.text.as_str(), second.tokens), ("abd", 2));
    }

    #[test]
    fn log_probabilities_travel_with_their_text_and_stop_with_it() {
        let chosen = |token| {
            let chosen = TokenLogprob { token, bytes: Vec::new(), logprob: -1.0 };
            Some(ChosenToken { chosen, top: Vec::new() })
        };
        let ids = |piece: Piece| -> Vec<u32> {
            piece.logprobs.iter().map(|entry| entry.chosen.token).collect()
        };
        let mut output = Output::new(&["ab".to_owned()]).unwrap();
        output.push(b"x", chosen(1));
        output.push(b"a", chosen(2));
        assert_eq!(ids(output.take(false).unwrap()), [1]);
        output.push(b"", chosen(3));
        output.push(b"c", chosen(4));
        assert_eq!(ids(output.take(false).unwrap()), [2, 3, 4]);
        output.push(b"ya", chosen(5));
        assert!(output.push(b"b", chosen(6)).is_some());
        assert_eq!(ids(output.take(true).unwrap()), [5]);
    }

    #[test]
    fn stop_texts_have_bounds() {
        assert!(Output::new(&[String::new()]).is_err());
        assert!(Output::new(&["x".repeat(STOP_BYTES_MAX + 1)]).is_err());
        assert!(Output::new(&vec!["x".to_owned(); STOP_TEXTS_MAX + 1]).is_err());
        assert!(Output::new(&vec!["x".repeat(STOP_BYTES_MAX); STOP_TEXTS_MAX]).is_ok());
    }
}
