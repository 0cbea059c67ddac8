//! The shortest way to end an answer, so that one that runs out of tokens still ends as it must.

use llguidance::Matcher as Parser;
use llguidance::toktrie::{SimpleVob, TokTrie};

use crate::llm::TokenId;

/// Longest way looked for.
pub const CLOSING_TOKENS_MAX: usize = 2048;

/// Different turns to take where one leads nowhere.
const TURNS: usize = 4;

/// Goes on with `parser` until its answer may end. Not always the shortest way there is, but a short
/// one; `None` if none of at most `tokens_max` tokens was found.
pub fn shortest(parser: &Parser, trie: &TokTrie, tokens_max: usize) -> Option<Vec<TokenId>> {
    (0..TURNS)
        .find_map(|turn| way(parser.clone(), trie, turn * 7, tokens_max.min(CLOSING_TOKENS_MAX)))
}

fn way(mut parser: Parser, trie: &TokTrie, turn: usize, tokens_max: usize) -> Option<Vec<TokenId>> {
    let mut way = Vec::new();
    while !parser.is_stopped() && !parser.is_accepting().ok()? {
        let mut next = parser.compute_ff_tokens();
        if next.is_empty() {
            next.push(choose(
                &parser.compute_mask().ok()?,
                trie,
                if turn == 0 { 0 } else { turn + way.len() },
            )?);
        }
        if way.len() + next.len() > tokens_max {
            return None;
        }
        parser.consume_tokens(&next).ok()?;
        way.extend(next);
    }
    Some(way)
}

/// What closes first, then what says least. Where a pattern wants more, `turn` brings up other letters
/// and digits, so that it does not wait for one that never comes.
fn choose(mask: &SimpleVob, trie: &TokTrie, turn: usize) -> Option<TokenId> {
    let single = |byte: &u8| trie.token_id(&[*byte]).filter(|&token| mask.is_allowed(token));
    let any = |bytes: &[u8]| bytes.iter().find_map(single);
    let turned = |bytes: &[u8]| {
        let (late, early) = bytes.split_at(turn % bytes.len());
        any(early).or_else(|| any(late))
    };
    let others = || turned(b"@:.-/a0A 1b2Z_5x").or_else(|| first(mask, trie));
    // Only inside a text may a backslash come, or a comma as well as a quote; there brackets close nothing.
    let quote = single(&b'"');
    if single(&b'\\').is_some() || (quote.is_some() && single(&b',').is_some()) {
        return quote.or_else(others);
    }
    if let Some(close) = any(b"}],\"") {
        return Some(close);
    }
    // No word of JSON begins with this letter.
    if single(&b'a').is_some() {
        return others();
    }
    any(b"nft").or_else(|| turned(b"0123456789")).or_else(|| any(b"-.[{: \n<")).or_else(others)
}

/// Any token that is text.
fn first(mask: &SimpleVob, trie: &TokTrie) -> Option<TokenId> {
    mask.iter().find(|&token| !trie.is_special_token(token))
}
