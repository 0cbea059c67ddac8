use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use safetensors::tensor::{Dtype, TensorView as Stored, serialize_to_file};

use super::*;

const DIM: usize = 64;
const FFN: usize = 96;
const LAYERS: usize = 2;
const WORDS: [&str; 12] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "price", "rises", "falls", "##ing", "on", "monday",
    ".",
];
const POSITIONS: usize = 40;
const TOKENS_MAX: usize = 24;

/// A folder with a tiny random model, removed at the end.
struct Folder(PathBuf, HashMap<String, Vec<f32>>);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("qbtc-bert-{}-{name}", std::process::id()));
        std::fs::create_dir_all(path.join("1_Pooling")).unwrap();
        let shapes = shapes();
        let mut state = 1_u32;
        let mut tensors = HashMap::new();
        for (name, shape) in &shapes {
            let weights: Vec<f32> = (0..shape.iter().product())
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                    if name.ends_with("LayerNorm.weight") { 1.0 + 0.3 * x } else { 0.2 * x }
                })
                .collect();
            tensors.insert(name.clone(), weights);
        }
        let bytes: HashMap<&String, Vec<u8>> = tensors
            .iter()
            .map(|(name, weights)| (name, weights.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let stored = shapes.iter().map(|(name, shape)| {
            (name, Stored::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap())
        });
        serialize_to_file(stored, None, &path.join("model.safetensors")).unwrap();
        let folder = Self(path, tensors);
        folder.write("config.json", &config(2));
        folder
            .write("sentence_bert_config.json", &format!(r#"{{"max_seq_length": {TOKENS_MAX}}}"#));
        folder.write("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true}"#);
        folder.write("tokenizer.json", &tokenizer());
        folder
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn refusal(&self) -> String {
        Embedder::load(&self.0, 1).expect_err("refused").to_string()
    }
}

fn config(heads: usize) -> String {
    format!(
        r#"{{"model_type": "bert", "hidden_act": "gelu", "hidden_size": {DIM},
            "intermediate_size": {FFN}, "num_attention_heads": {heads},
            "num_hidden_layers": {LAYERS}, "vocab_size": {}, "max_position_embeddings": {POSITIONS},
            "layer_norm_eps": 1e-12}}"#,
        WORDS.len()
    )
}

fn tokenizer() -> String {
    let mut vocab = String::new();
    for (id, word) in WORDS.iter().enumerate() {
        write!(vocab, "{}\"{word}\": {id}", if id == 0 { "" } else { ", " }).unwrap();
    }
    let special =
        |id: usize| format!(r#"{{"id": "{0}", "ids": [{id}], "tokens": ["{0}"]}}"#, WORDS[id]);
    let piece =
        |id: usize| format!(r#"{{"SpecialToken": {{"id": "{}", "type_id": 0}}}}"#, WORDS[id]);
    format!(
        r#"{{"version": "1.0", "truncation": {{"max_length": 8, "strategy": "LongestFirst",
            "stride": 0, "direction": "Right"}}, "padding": null, "added_tokens": [],
            "normalizer": {{"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}},
            "pre_tokenizer": {{"type": "BertPreTokenizer"}},
            "post_processor": {{"type": "TemplateProcessing",
            "single": [{0}, {{"Sequence": {{"id": "A", "type_id": 0}}}}, {1}],
            "pair": [{0}, {{"Sequence": {{"id": "A", "type_id": 0}}}}, {1},
            {{"Sequence": {{"id": "B", "type_id": 1}}}}],
            "special_tokens": {{"[CLS]": {2}, "[SEP]": {3}}}}}, "decoder": null,
            "model": {{"type": "WordPiece", "unk_token": "[UNK]",
            "continuing_subword_prefix": "\u0023\u0023", "max_input_chars_per_word": 100,
            "vocab": {{{vocab}}}}}}}"#,
        piece(2),
        piece(3),
        special(2),
        special(3)
    )
}

fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS.len(), DIM]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![POSITIONS, DIM]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, DIM]),
        ("embeddings.LayerNorm.weight".to_owned(), vec![DIM]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![DIM]),
    ];
    for layer in 0..LAYERS {
        for (part, rows, columns) in [
            ("attention.self.query", DIM, DIM),
            ("attention.self.key", DIM, DIM),
            ("attention.self.value", DIM, DIM),
            ("attention.output.dense", DIM, DIM),
            ("intermediate.dense", FFN, DIM),
            ("output.dense", DIM, FFN),
        ] {
            let name = format!("encoder.layer.{layer}.{part}");
            shapes.push((format!("{name}.weight"), vec![rows, columns]));
            shapes.push((format!("{name}.bias"), vec![rows]));
        }
        for part in ["attention.output.LayerNorm", "output.LayerNorm"] {
            let name = format!("encoder.layer.{layer}.{part}");
            shapes.push((format!("{name}.weight"), vec![DIM]));
            shapes.push((format!("{name}.bias"), vec![DIM]));
        }
    }
    shapes
}

/// The slow version: f64, one text, straight from the definition.
struct Twin<'a> {
    tensors: &'a HashMap<String, Vec<f32>>,
    heads: usize,
}

type Rows = Vec<Vec<f64>>;

impl Twin<'_> {
    fn get(&self, name: &str) -> Vec<f64> {
        self.tensors[name].iter().map(|&x| x.into()).collect()
    }

    fn linear(&self, name: &str, rows: &Rows) -> Rows {
        let (weights, bias) =
            (self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")));
        let product = |row: &Vec<f64>| {
            let dot = |w: &[f64]| w.iter().zip(row).map(|(w, x)| w * x).sum::<f64>();
            weights.chunks(row.len()).zip(&bias).map(|(w, b)| dot(w) + b).collect()
        };
        rows.iter().map(product).collect()
    }

    fn norm(&self, name: &str, rows: &Rows) -> Rows {
        let (scale, shift) =
            (self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")));
        let normed = |row: &Vec<f64>| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let normed = row.iter().map(|x| (x - mean) / (variance + 1e-12).sqrt());
            normed.zip(scale.iter().zip(&shift)).map(|(x, (a, b))| x * a + b).collect()
        };
        rows.iter().map(normed).collect()
    }

    fn attention(&self, name: &str, rows: &Rows) -> Rows {
        let [q, k, v] =
            ["query", "key", "value"].map(|part| self.linear(&format!("{name}.{part}"), rows));
        let size = DIM / self.heads;
        let mut mixed = vec![vec![0.0; DIM]; rows.len()];
        for (query, out) in q.iter().zip(&mut mixed) {
            for head in 0..self.heads {
                let at = head * size..(head + 1) * size;
                let dot = |key: &Vec<f64>| {
                    let terms = at.clone().map(|d| query[d] * key[d]);
                    (terms.sum::<f64>() / (size as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = k.iter().map(dot).collect();
                let sum: f64 = scores.iter().sum();
                for (value, score) in v.iter().zip(scores) {
                    at.clone().for_each(|d| out[d] += score / sum * value[d]);
                }
            }
        }
        mixed
    }

    fn embed(&self, ids: &[u32]) -> Vec<f64> {
        let words = self.get("embeddings.word_embeddings.weight");
        let positions = self.get("embeddings.position_embeddings.weight");
        let segment = self.get("embeddings.token_type_embeddings.weight");
        let row = |(at, &id): (usize, &u32)| -> Vec<f64> {
            let (word, position) = (&words[id as usize * DIM..], &positions[at * DIM..]);
            (0..DIM).map(|d| word[d] + position[d] + segment[d]).collect()
        };
        let plus = |a: Rows, b: Rows| -> Rows {
            let add = |(a, b): (Vec<f64>, Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + b).collect();
            a.into_iter().zip(b).map(add).collect()
        };
        let mut x = self.norm("embeddings.LayerNorm", &ids.iter().enumerate().map(row).collect());
        for layer in 0..LAYERS {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let mixed = self.attention(&name("attention.self"), &x);
            let mixed = self.linear(&name("attention.output.dense"), &mixed);
            x = self.norm(&name("attention.output.LayerNorm"), &plus(x, mixed));
            let mut hidden = self.linear(&name("intermediate.dense"), &x);
            hidden.iter_mut().flatten().for_each(|x| *x *= normal_below(*x));
            let mixed = self.linear(&name("output.dense"), &hidden);
            x = self.norm(&name("output.LayerNorm"), &plus(x, mixed));
        }
        let mut mean: Vec<f64> = (0..DIM).map(|d| x.iter().map(|row| row[d]).sum()).collect();
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        for x in &mut mean {
            *x /= length;
        }
        mean
    }
}

/// Probability that a normal number is below `x`, by Simpson's rule from 0.
fn normal_below(x: f64) -> f64 {
    let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let step = x / 200.0;
    let inner = (1..200).map(|n| density(f64::from(n) * step) * f64::from(2 + 2 * (n % 2)));
    0.5 + step / 3.0 * (density(0.0) + density(x) + inner.sum::<f64>())
}

const TEXTS: [&str; 6] = [
    "The price rises on Monday.",
    "",
    "falling",
    "the price falls. the price rises. The PRICE falls on Monday, the price rises on Monday.",
    "on on on on on on on on on on on on on on on on on on on on on on on on on on on on on on",
    "nothing known",
];

#[test]
fn every_instruction_set_agrees_with_the_slow_version() {
    for heads in [1, 2] {
        let folder = Folder::new(&format!("twin-{heads}"));
        folder.write("config.json", &config(heads));
        let twin = Twin { tensors: &folder.1, heads };
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let embedder = Embedder::load_for(&folder.0, 2, isa).unwrap();
            let got = embedder.embed(&TEXTS).unwrap();
            for (text, vector) in TEXTS.iter().zip(got.vectors.chunks_exact(DIM)) {
                let ids = embedder.encode(text).unwrap().ids;
                let expected = twin.embed(&ids);
                let cosine: f64 = expected.iter().zip(vector).map(|(a, &b)| a * f64::from(b)).sum();
                assert!(cosine > 0.999, "{isa:?}, {heads} heads, {text:?}: {cosine}");
            }
        }
    }
}

#[test]
fn a_text_has_the_same_vector_alone_and_in_company() {
    let folder = Folder::new("alone");
    let embedder = Embedder::load(&folder.0, 2).unwrap();
    let many: Vec<&str> = TEXTS.iter().copied().cycle().take(50).collect();
    let together = embedder.embed(&many).unwrap();
    for (index, text) in many.iter().enumerate() {
        let alone = embedder.embed(&[text]).unwrap();
        assert_eq!(alone.vectors, together.vectors[index * DIM..][..DIM], "{text}");
        let length: f32 = alone.vectors.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }
    assert_eq!(embedder.embed(&[]).unwrap().vectors, Vec::<f32>::new());
}

#[test]
fn a_long_text_is_cut_and_said_to_be() {
    let folder = Folder::new("long");
    let embedder = Embedder::load(&folder.0, 1).unwrap();
    assert_eq!((embedder.dim(), embedder.tokens_max()), (DIM, TOKENS_MAX));
    assert_eq!(embedder.count_tokens(TEXTS[4]).unwrap(), 32);
    assert_eq!(embedder.count_tokens("").unwrap(), 2);
    let read = embedder.embed(&TEXTS).unwrap();
    assert_eq!(read.truncated, [false, false, false, false, true, false]);
    assert_eq!(read.tokens[4], TOKENS_MAX);
    let ids = embedder.encode(TEXTS[4]).unwrap().ids;
    assert_eq!((ids[0], ids[TOKENS_MAX - 1]), (2, 3), "the tokens around a text stay");
    let huge = "a".repeat(TEXT_BYTES_MAX + 1);
    assert!(embedder.embed(&["the", &huge]).unwrap_err().to_string().contains("at most"));
}

#[test]
fn pieces_are_of_whole_texts_and_enough_for_all_workers() {
    let text = |len: usize| Encoded { ids: vec![0; len], truncated: false };
    let texts: Vec<Encoded> = [100, 20, 30, 200, 5, 5].map(text).to_vec();
    assert_eq!(pieces(&texts, 1), [0..2, 2..3, 3..4, 4..6]);
    assert_eq!(pieces(&texts[4..], 2), [0..1, 1..2]);
    assert!(pieces(&[], 2).is_empty());
}

#[test]
fn buffers_that_no_machine_has_are_refused_before_they_are_made() {
    assert!(check_room(1536, 512, 16).is_ok());
    let refusal = check_room(1 << 14, 1 << 13, 2).unwrap_err().to_string();
    assert!(refusal.contains("use fewer threads"), "{refusal}");
    assert!(check_room(usize::MAX, 2, 2).is_err());
}

#[test]
fn what_is_missing_or_not_supported_is_named() {
    let folder = Folder::new("refused");
    folder.write("config.json", &config(2).replace("\"gelu\"", "\"relu\""));
    assert!(folder.refusal().contains("`hidden_act` is `relu`"));
    folder.write("config.json", &config(4));
    assert!(folder.refusal().contains("heads of 32 or 64"));
    folder.write(
        "config.json",
        &config(2).replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
    );
    assert!(folder.refusal().contains("encoder.layer.2.attention.self.query"));
    folder.write("config.json", &config(2).replace("\"vocab_size\": 12", "\"vocab_size\": 11"));
    assert!(folder.refusal().contains("has shape [12, 64], expected [11, 64]"));
    folder.write("config.json", "{");
    assert!(folder.refusal().contains("config.json"));
    folder.write("config.json", &config(2));
    folder.write("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true}"#);
    assert!(folder.refusal().contains("mean"));
    folder.write("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true}"#);
    let stranger = tokenizer().replace("\"ids\": [3]", "\"ids\": [150]");
    folder.write("tokenizer.json", &stranger);
    assert!(folder.refusal().contains("has a token 150, the model only 12"));
    folder.write("tokenizer.json", "{}");
    assert!(folder.refusal().contains("tokenizer.json"));
    std::fs::remove_file(folder.0.join("model.safetensors")).unwrap();
    assert!(matches!(Embedder::load(&folder.0, 1), Err(Error::Io { .. })));
}
