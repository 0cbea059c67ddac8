//! What a model file says about its tokens, as plain values.

use crate::llm::TokenId;
use crate::llm::gguf::Gguf;
use crate::{Error, Result};

/// What a token is for. The numbers are those of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for what the vocabulary cannot say.
    Unknown,
    /// Structure, not text: the beginning of a message, the end of an answer.
    Control,
    /// Text that is kept whole.
    UserDefined,
    /// Never used.
    Unused,
    /// A single byte.
    Byte,
}

impl TokenKind {
    /// The kind of this number of `tokenizer.ggml.token_type`.
    pub fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// The tokens that mark the parts of an infill prompt, if a model was trained on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Infill {
    /// Before the text that precedes the gap.
    pub prefix: TokenId,
    /// Before the text that follows it.
    pub suffix: TokenId,
    /// Before the answer.
    pub middle: TokenId,
}

/// The vocabulary of a model: everything a [`super::Tokenizer`] is built from.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// `gpt2` (byte pairs by merges) or `llama` (pieces by score).
    pub model: String,
    /// How text is cut into words, see [`super::Split`]; unused by `llama`.
    pub pre: String,
    /// Text of each token as the file has it.
    pub tokens: Vec<String>,
    /// Kind of each token; empty if all are normal.
    pub kinds: Vec<TokenKind>,
    /// `gpt2`: pairs to merge, best first, parted by a space.
    pub merges: Vec<String>,
    /// `llama`: score of each token.
    pub scores: Vec<f32>,
    /// Begins a text.
    pub bos: Option<TokenId>,
    /// Ends a text.
    pub eos: Option<TokenId>,
    /// Ends a message.
    pub eot: Option<TokenId>,
    /// Stands for what the vocabulary cannot say.
    pub unknown: Option<TokenId>,
    /// Texts are to begin with `bos`; `None` leaves it to the kind of model.
    pub add_bos: Option<bool>,
    /// `llama`: a space goes before the first word; `None` leaves it to the kind of model.
    pub add_space_prefix: Option<bool>,
    /// Tokens for infill.
    pub infill: Option<Infill>,
}

impl Vocabulary {
    /// The vocabulary of a model file.
    ///
    /// # Errors
    /// [`Error::Model`] if a key is missing or has the wrong type or value.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let id = |key: &str| -> Result<Option<TokenId>> {
            let number = file.optional_u64(&format!("tokenizer.ggml.{key}"))?;
            let fits = |id| {
                TokenId::try_from(id).map_err(|_| {
                    Error::model(format!("tokenizer.ggml.{key}"), format!("{id} is not a token"))
                })
            };
            number.map(fits).transpose()
        };
        // Files name the infill tokens under two generations of keys.
        let either = |new: &str, old: &str| id(new)?.map_or_else(|| id(old), |id| Ok(Some(id)));
        let infill = (
            either("fim_pre_token_id", "prefix_token_id")?,
            either("fim_suf_token_id", "suffix_token_id")?,
            either("fim_mid_token_id", "middle_token_id")?,
        );
        let infill = match infill {
            (Some(prefix), Some(suffix), Some(middle)) => Some(Infill { prefix, suffix, middle }),
            _ => None,
        };
        let owned = |strings: Vec<&str>| strings.into_iter().map(str::to_owned).collect();
        Ok(Self {
            model: file.string("tokenizer.ggml.model")?.to_owned(),
            pre: file.optional_string("tokenizer.ggml.pre")?.unwrap_or_default().to_owned(),
            tokens: owned(file.strings("tokenizer.ggml.tokens")?),
            kinds: kinds(&file.optional_i64s("tokenizer.ggml.token_type")?.unwrap_or_default())?,
            merges: file.optional_strings("tokenizer.ggml.merges")?.map(owned).unwrap_or_default(),
            scores: file.optional_f32s("tokenizer.ggml.scores")?.unwrap_or_default(),
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            eot: id("eot_token_id")?,
            unknown: id("unknown_token_id")?,
            add_bos: file.optional_bool("tokenizer.ggml.add_bos_token")?,
            add_space_prefix: file.optional_bool("tokenizer.ggml.add_space_prefix")?,
            infill,
        })
    }
}

fn kinds(numbers: &[i64]) -> Result<Vec<TokenKind>> {
    let kind = |&number: &i64| {
        TokenKind::from_number(number).ok_or_else(|| {
            Error::model("tokenizer.ggml.token_type", format!("{number} is not a kind of token"))
        })
    };
    numbers.iter().map(kind).collect()
}
