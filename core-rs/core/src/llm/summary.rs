//! What a model file says about itself, read from its head alone.

use std::collections::HashMap;

use crate::Result;
use crate::llm::gguf::Gguf;

/// Facts for people; nothing here says that the engine can run the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSummary {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, or nothing.
    pub name: String,
    /// Longest sequence in tokens.
    pub context: u64,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// Kind that most bytes of the weights are packed as, by ggml's name.
    pub quantisation: &'static str,
    /// Length of the file, bytes.
    pub bytes: usize,
}

impl ModelSummary {
    /// Read it from an open file.
    ///
    /// # Errors
    /// [`crate::Error::Model`] naming the key or tensor that is missing.
    pub fn of(file: &Gguf) -> Result<Self> {
        let architecture = file.architecture()?;
        let mut by_kind: HashMap<&'static str, usize> = HashMap::new();
        let mut parameters = 0;
        for tensor in file.tensors() {
            *by_kind.entry(tensor.kind.name()).or_default() += tensor.bytes.len();
            parameters += (tensor.rows * tensor.columns) as u64;
        }
        // Of equal ones the first by name: a map has no order of its own.
        let most =
            by_kind.into_iter().max_by_key(|&(name, bytes)| (bytes, std::cmp::Reverse(name)));
        Ok(Self {
            architecture: architecture.to_owned(),
            name: file.optional_string("general.name")?.unwrap_or_default().to_owned(),
            context: file.u64(&format!("{architecture}.context_length"))?,
            vocab: file.tensor("token_embd.weight")?.rows,
            parameters,
            quantisation: most.map_or("", |(name, _)| name),
            bytes: file.len_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::gguf::TensorKind;
    use crate::llm::gguf::writer::{GgufWriter, TinyModel};

    #[test]
    fn a_summary_says_what_the_file_holds() {
        let model = TinyModel { kind: TensorKind::Q8_0, ..TinyModel::qwen2() };
        let file = model.gguf().unwrap();
        let summary = ModelSummary::of(&file).unwrap();
        assert_eq!(summary.architecture, "qwen2");
        assert_eq!(summary.context, model.context as u64);
        assert_eq!(summary.quantisation, "Q8_0");
        assert_eq!(summary.vocab, file.tensor("token_embd.weight").unwrap().rows);
        let numbers: usize = file.tensors().map(|each| each.rows * each.columns).sum();
        assert_eq!(summary.parameters, numbers as u64);
        assert_eq!(summary.bytes, model.bytes().len());
    }

    #[test]
    fn a_file_that_is_no_language_model_names_what_is_missing() {
        let mut file = GgufWriter::new();
        file.string("general.architecture", "llama");
        let file = Gguf::from_bytes(file.finish()).unwrap();
        assert!(ModelSummary::of(&file).unwrap_err().to_string().contains("llama.context_length"));
    }
}
