//! Where a text is cut into words before byte pairs are merged: the "pre-tokenizer" of a model.
//!
//! Each scheme is the regular expression of the model's authors, written out as a scanner: one pass,
//! no back-tracking, no limit on the length of a run. The tests hold it against the expressions.

use std::sync::LazyLock;

use crate::{Error, Result};

/// How a model cuts text into words. The names are those of `tokenizer.ggml.pre`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Every digit is a word; between them as [`Split::Gpt2`].
    Smollm,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3,
    /// As [`Split::Llama3`], each digit by itself.
    Qwen2,
}

impl Split {
    /// The scheme of this name.
    ///
    /// # Errors
    /// [`Error::Model`] for an unknown one, with the known ones.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "gpt-2" => Ok(Self::Gpt2),
            "smollm" => Ok(Self::Smollm),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(Self::Llama3),
            "qwen2" => Ok(Self::Qwen2),
            _ => Err(Error::model(
                "tokenizer.ggml.pre",
                format!(
                    "`{name}` is not supported; supported are gpt-2, smollm, llama-bpe, llama3, qwen2"
                ),
            )),
        }
    }

    /// Call `word` with each word of `text` in order; together they are `text`.
    pub fn words<'t>(self, text: &'t str, mut word: impl FnMut(&'t str)) {
        if self != Self::Smollm {
            return self.cut(text, &mut word);
        }
        let mut from = 0;
        for (at, digit) in text.char_indices().filter(|&(_, c)| kind(c) == Kind::Number) {
            let after = at + digit.len_utf8();
            self.cut(&text[from..at], &mut word);
            word(&text[at..after]);
            from = after;
        }
        self.cut(&text[from..], &mut word);
    }

    fn cut<'t>(self, mut text: &'t str, word: &mut impl FnMut(&'t str)) {
        while let Some(first) = text.chars().next() {
            let length = match self {
                Self::Gpt2 | Self::Smollm => gpt2_word(text, first),
                Self::Llama3 => llama3_word(text, first, 3),
                Self::Qwen2 => llama3_word(text, first, 1),
            };
            let (head, tail) = text.split_at(length);
            word(head);
            text = tail;
        }
    }
}

/// Bytes of the first word of `text`, which begins with `first`.
fn gpt2_word(text: &str, first: char) -> usize {
    if first == '\'' {
        for ending in ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"] {
            if text.starts_with(ending) {
                return ending.len();
            }
        }
    }
    let space = usize::from(first == ' ');
    match text[space..].chars().next().map(kind) {
        None | Some(Kind::Space) => spaces(text),
        Some(run) => space + run_of(&text[space..], run),
    }
}

/// Bytes of the first word of `text`, which begins with `first`; numbers have `digits` at most.
fn llama3_word(text: &str, first: char, digits: usize) -> usize {
    let own = kind(first);
    let width = first.len_utf8();
    let mut rest = text[width..].chars();
    let next = rest.next();
    if first == '\'' {
        // Folded as Unicode does, where the long s is an s.
        let fold = |c: char| if c == 'ſ' { 's' } else { c.to_ascii_lowercase() };
        match (next.map(fold), rest.next().map(fold)) {
            (Some('s' | 't' | 'm' | 'd'), _) => return width + next.map_or(0, char::len_utf8),
            (Some('r' | 'v'), Some('e')) | (Some('l'), Some('l')) => return width + 2,
            _ => {}
        }
    }
    let next = next.map(kind);
    match own {
        Kind::Letter => run_of(text, Kind::Letter),
        Kind::Number => text
            .chars()
            .take(digits)
            .take_while(|&c| kind(c) == Kind::Number)
            .map(char::len_utf8)
            .sum(),
        _ if next == Some(Kind::Letter) && !matches!(first, '\r' | '\n') => {
            width + run_of(&text[width..], Kind::Letter)
        }
        Kind::Other => signs(text),
        Kind::Space if first == ' ' && next == Some(Kind::Other) => width + signs(&text[width..]),
        Kind::Space => {
            let run = &text[..run_of(text, Kind::Space)];
            run.rfind(['\r', '\n']).map_or_else(|| spaces(text), |last| last + 1)
        }
    }
}

/// `[^\s\p{L}\p{N}]+[\r\n]*`
fn signs(text: &str) -> usize {
    let run = run_of(text, Kind::Other);
    run + text[run..].bytes().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
}

/// `\s+(?!\S)|\s+`: the last space before a word belongs to the word.
fn spaces(text: &str) -> usize {
    let run = run_of(text, Kind::Space);
    let last = text[..run].chars().next_back().map_or(0, char::len_utf8);
    if run == text.len() || run == last { run } else { run - last }
}

/// Bytes of the longest beginning of `text` that is all of one kind.
fn run_of(text: &str, wanted: Kind) -> usize {
    text.char_indices().find(|&(_, c)| kind(c) != wanted).map_or(text.len(), |(at, _)| at)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    Other,
}

fn kind(c: char) -> Kind {
    if c.is_ascii() {
        return ASCII[c as usize];
    }
    if LETTERS.holds(c) {
        Kind::Letter
    } else if NUMBERS.holds(c) {
        Kind::Number
    } else if c.is_whitespace() {
        Kind::Space
    } else {
        Kind::Other
    }
}

const ASCII: [Kind; 128] = {
    let mut kinds = [Kind::Other; 128];
    let mut c = 0u8;
    while c < 128 {
        kinds[c as usize] = match c {
            b'a'..=b'z' | b'A'..=b'Z' => Kind::Letter,
            b'0'..=b'9' => Kind::Number,
            b'\t'..=b'\r' | b' ' => Kind::Space,
            _ => Kind::Other,
        };
        c += 1;
    }
    kinds
};

/// The standard library's "alphabetic" is wider than `\p{L}` (it has combining vowel signs).
static LETTERS: LazyLock<Class> = LazyLock::new(|| Class::of(r"\p{L}"));
static NUMBERS: LazyLock<Class> = LazyLock::new(|| Class::of(r"\p{N}"));

/// A set of code points, one bit each.
struct Class(Vec<u64>);

impl Class {
    fn of(expression: &str) -> Self {
        use regex_syntax::hir::{Class, HirKind};
        let parsed = regex_syntax::parse(expression).expect("a valid class");
        let HirKind::Class(Class::Unicode(class)) = parsed.kind() else {
            unreachable!("a class of code points");
        };
        let mut bits = vec![0; (char::MAX as usize + 1) / 64];
        for at in class.iter().flat_map(|range| range.start() as usize..=range.end() as usize) {
            bits[at / 64] |= 1 << (at % 64);
        }
        Self(bits)
    }

    fn holds(&self, c: char) -> bool {
        self.0[c as usize / 64] >> (c as usize % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::split::{Split as Expression, SplitPattern};
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
    };

    const GPT2: &str =
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn expressions(patterns: &[&str]) -> Vec<Expression> {
        let isolated = |p: &&str| {
            let pattern = SplitPattern::Regex((*p).to_owned());
            Expression::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap()
        };
        patterns.iter().map(isolated).collect()
    }

    fn by_expression(expressions: &[Expression], text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        for expression in expressions {
            expression.pre_tokenize(&mut pieces).unwrap();
        }
        let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(piece, _, _)| piece.to_owned()).filter(|p| !p.is_empty()).collect()
    }

    fn by_scanner(split: Split, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        split.words(text, |word| words.push(word.to_owned()));
        words
    }

    static SCHEMES: LazyLock<Vec<(Split, Vec<Expression>)>> = LazyLock::new(|| {
        vec![
            (Split::Gpt2, expressions(&[GPT2])),
            (Split::Smollm, expressions(&[r"\p{N}", GPT2])),
            (Split::Llama3, expressions(&[LLAMA3])),
            (Split::Qwen2, expressions(&[QWEN2])),
        ]
    });

    fn agree(text: &str) {
        for (split, expressions) in SCHEMES.iter() {
            assert_eq!(
                by_scanner(*split, text),
                by_expression(expressions, text),
                "{split:?} {text:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn words_of_text_that_provokes_every_branch_are_those_of_the_expression(
            text in r"('s|'S|'ſ|'re|'RE|'Ve|'ll|'|a|Zz|é|ß|中|ाक|e\u0301|1|٣|Ⅷ|½| |  |   |\t|\r|\n|\r\n|\u{a0}|\u{2003}|\.|!!|😀|\u{200d}|\u{1c}|_|-){0,24}"
        ) {
            agree(&text);
        }

        #[test]
        fn words_of_any_text_are_those_of_the_expression(text in any::<String>()) {
            agree(&text);
        }
    }

    #[test]
    fn every_code_point_alone_and_between_letters_is_cut_as_by_the_expression() {
        let all: Vec<char> = (0..=u32::from(char::MAX)).filter_map(char::from_u32).collect();
        for chunk in all.chunks(4096) {
            let text: String = chunk.iter().flat_map(|&c| ['a', c, 'b', ' ', c]).collect();
            for (split, expressions) in SCHEMES.iter() {
                assert!(
                    by_scanner(*split, &text) == by_expression(expressions, &text),
                    "{split:?} {:x}",
                    chunk[0] as u32
                );
            }
        }
    }

    #[test]
    fn an_unknown_scheme_is_refused_with_the_known_ones() {
        let message = Split::named("tekken").unwrap_err().to_string();
        assert!(message.contains("tekken") && message.contains("smollm"), "{message}");
    }
}
