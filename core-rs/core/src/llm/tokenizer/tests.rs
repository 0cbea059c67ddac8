use super::*;
use proptest::prelude::*;

/// All bytes, a few merges and control tokens.
fn small() -> Vocabulary {
    let mut tokens: Vec<String> = alphabet().iter().map(char::to_string).collect();
    let merges =
        ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġ Ġ", "ĠĠ ĠĠ", "a a", "aa aa", "aaaa aaaa"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    for (name, kind) in [
        ("<|im_start|>", TokenKind::Control),
        ("<|im_end|>", TokenKind::Control),
        ("<|im_end|>!", TokenKind::Control),
        ("<tool_call>", TokenKind::UserDefined),
    ] {
        tokens.push(name.to_owned());
        kinds.push(kind);
    }
    let end = tokens.len() as u32 - 3;
    Vocabulary {
        model: "gpt2".to_owned(),
        pre: "qwen2".to_owned(),
        tokens,
        kinds,
        merges: merges.map(str::to_owned).to_vec(),
        bos: Some(end - 1),
        eos: Some(end),
        ..Vocabulary::default()
    }
}

fn pieces_of(tokenizer: &Tokenizer, text: &str, special: SpecialTokens) -> Vec<String> {
    let tokens = tokenizer.encode(text, special).unwrap();
    tokens.iter().map(|&t| String::from_utf8_lossy(tokenizer.bytes(t)).into_owned()).collect()
}

/// Pieces with scores as a `llama` file has them.
fn scored() -> Vocabulary {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    let mut kinds = vec![TokenKind::Unknown, TokenKind::Control, TokenKind::Control];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    kinds.resize(tokens.len(), TokenKind::Byte);
    let pieces = ["▁a", "bc", "▁abc", "▁▁", "▁", "a", "b", "c"];
    tokens.extend(pieces.map(str::to_owned));
    kinds.resize(tokens.len(), TokenKind::Normal);
    let scores =
        (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 258.0 - id as f32 }).collect();
    Vocabulary {
        model: "llama".to_owned(),
        pre: "default".to_owned(),
        tokens,
        kinds,
        scores,
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..Vocabulary::default()
    }
}

#[test]
fn merges_apply_best_first_within_words() {
    let tokenizer = Tokenizer::new(&small()).unwrap();
    let pieces = |text| pieces_of(&tokenizer, text, SpecialTokens::AsText);
    assert_eq!(pieces("hello world"), ["hello", " w", "o", "r", "l", "d"]);
    assert_eq!(pieces("hell    o"), ["hell", "  ", " ", " ", "o"]);
    assert_eq!(pieces(""), Vec::<String>::new());
}

#[test]
fn control_tokens_are_text_unless_asked_for_and_the_longest_wins() {
    let tokenizer = Tokenizer::new(&small()).unwrap();
    let text = "<|im_start|>hello<|im_end|>!<tool_call><|im_end|";
    let parsed = pieces_of(&tokenizer, text, SpecialTokens::Parse);
    assert_eq!(parsed[..4], ["<|im_start|>", "hello", "<|im_end|>!", "<tool_call>"]);
    let plain = tokenizer.encode(text, SpecialTokens::AsText).unwrap();
    assert!(plain.iter().all(|&t| !tokenizer.is_control(t)));
    assert_eq!(tokenizer.decode(&plain, false), text.as_bytes());

    let tokens = tokenizer.encode(text, SpecialTokens::Parse).unwrap();
    assert_eq!(tokenizer.decode(&tokens, false), b"hello<tool_call><|im_end|");
    assert_eq!(tokenizer.decode(&tokens, true), text.as_bytes());
    assert_eq!(tokenizer.control("<|im_start|>"), Some(tokens[0]));
    assert_eq!(tokenizer.control("<|im_middle|>"), None);
}

#[test]
fn ends_and_beginnings_are_what_the_file_says() {
    let mut vocabulary = small();
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    assert_eq!(tokenizer.end_tokens(), [vocabulary.eos.unwrap()]);
    assert_eq!(tokenizer.bos(), None);
    vocabulary.add_bos = Some(true);
    vocabulary.eos = Some(3);
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    assert_eq!(tokenizer.bos(), vocabulary.bos);
    assert_eq!(tokenizer.end_tokens(), [3, vocabulary.bos.unwrap() + 1]);
}

#[test]
fn a_byte_without_a_token_is_left_out_and_keeps_its_neighbours_apart() {
    let mut vocabulary = small();
    vocabulary.tokens[7] = "unreachable".to_owned();
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    let pieces = pieces_of(&tokenizer, "a\u{7}aa", SpecialTokens::AsText);
    assert_eq!(pieces, ["a", "aa"]);
}

#[test]
fn a_megabyte_without_a_space_takes_linear_time() {
    let tokenizer = Tokenizer::new(&small()).unwrap();
    for unit in ["a", " ", "\n", "é", "1", "'", "<|", "\u{301}"] {
        let text = unit.repeat((1 << 20) / unit.len());
        let tokens = tokenizer.encode(&text, SpecialTokens::Parse).unwrap();
        assert_eq!(tokenizer.decode(&tokens, false), text.as_bytes(), "{unit:?}");
    }
}

#[test]
fn scored_pieces_merge_by_score_and_fall_back_to_bytes() {
    let tokenizer = Tokenizer::new(&scored()).unwrap();
    assert_eq!(pieces_of(&tokenizer, "abc  a", SpecialTokens::AsText), [" abc", " ", " a"]);
    assert_eq!(tokenizer.bos(), Some(1));
    let tokens = tokenizer.encode("é</s>a\n", SpecialTokens::Parse).unwrap();
    assert_eq!(tokens, [263, 3 + 0xC3, 3 + 0xA9, 2, 259, 3 + 0x0A]);
    assert_eq!(tokenizer.decode(&tokens, false), "é a\n".as_bytes());
    let plain = tokenizer.encode("</s>", SpecialTokens::AsText).unwrap();
    assert!(plain.iter().all(|&t| !tokenizer.is_control(t)));
}

#[test]
fn a_vocabulary_that_contradicts_itself_is_refused() {
    let refused = |change: &dyn Fn(&mut Vocabulary)| {
        let mut vocabulary = small();
        change(&mut vocabulary);
        Tokenizer::new(&vocabulary).unwrap_err().to_string()
    };
    assert!(refused(&|v| v.model = "bert".to_owned()).contains("supported are gpt2 and llama"));
    assert!(refused(&|v| v.pre = "tekken".to_owned()).contains("supported are"));
    assert!(refused(&|v| v.tokens.clear()).contains("0 tokens"));
    assert!(refused(&|v| v.tokens[260] = "a".repeat(3000)).contains("token 260 has more than"));
    assert!(refused(&|v| v.kinds.truncate(3)).contains("3 values"));
    assert!(refused(&|v| v.eos = Some(9999)).contains("9999"));
    assert!(refused(&|v| v.merges.push("nopair".to_owned())).contains("nopair"));
    assert!(refused(&|v| v.merges.push("x yz".to_owned())).contains("merges"));
    assert!(refused(&|v| v.model = "llama".to_owned()).contains("score"));
    let mut vocabulary = scored();
    vocabulary.scores[260] = f32::NAN;
    assert!(Tokenizer::new(&vocabulary).unwrap_err().to_string().contains("NaN"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_comes_back(text in any::<String>(), scheme in 0..4usize) {
        let mut vocabulary = small();
        vocabulary.pre = ["gpt-2", "smollm", "llama3", "qwen2"][scheme].to_owned();
        let tokenizer = Tokenizer::new(&vocabulary).unwrap();
        let tokens = tokenizer.encode(&text, SpecialTokens::AsText).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokens, false), text.as_bytes());
    }
}
