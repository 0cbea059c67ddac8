//! GGUF files: the metadata and the tensors of a language model, mapped into memory.
//!
//! Everything is checked when a file is opened: counts, lengths, types, alignment, and that every
//! tensor lies inside the file and on no other. After that no read can fail or leave the file.
//! Nothing is copied but the names; strings, arrays and weights stay in the mapping.
//!
//! - [`TensorKind`] says how weights are packed and turns them back into f32.
//! - [`writer`] makes small files for tests and conversions.
//!
//! Versions 2 and 3, little-endian. Format: `ggml-org/ggml`, `docs/gguf.md`.
#![expect(unsafe_code, reason = "mapping a file")]

mod encode;
mod kind;
mod parse;
pub mod writer;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

pub use kind::TensorKind;

use crate::{Error, Result};
use parse::{Entry, TensorEntry, ValueType};

/// Most metadata keys of a file.
pub const METADATA_KEYS_MAX: usize = 65_536;
/// Most tensors of a file.
pub const TENSORS_MAX: usize = 65_536;
/// Longest metadata key, bytes (the format's own limit).
pub const KEY_BYTES_MAX: usize = 65_535;
/// Longest tensor name, bytes.
pub const TENSOR_NAME_BYTES_MAX: usize = 128;
/// Longest string, bytes; chat templates are the longest there are.
pub const STRING_BYTES_MAX: usize = 16 << 20;
/// Most elements of a metadata array; vocabularies and merges are the longest there are.
pub const ARRAY_ELEMENTS_MAX: usize = 16 << 20;
/// Most dimensions of a tensor.
pub const TENSOR_DIMENSIONS_MAX: usize = 4;
/// Largest alignment of the tensor data, bytes.
pub const ALIGNMENT_BYTES_MAX: usize = 1 << 20;

/// An open GGUF file.
pub struct Gguf {
    data: Data,
    metadata: HashMap<String, Entry>,
    tensors: Vec<TensorEntry>,
    by_name: HashMap<String, usize>,
    sha256: OnceLock<[u8; 32]>,
}

/// Where the bytes are.
enum Data {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// One tensor: `rows` x `columns` weights, a row after the other, `columns` innermost. A vector is
/// one row.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Product of all dimensions but the innermost.
    pub rows: usize,
    /// The innermost dimension, a multiple of the kind's block.
    pub columns: usize,
    /// How the weights are packed.
    pub kind: TensorKind,
    /// The packed weights, exactly `rows * row_bytes()`.
    pub bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.kind.row_bytes(self.columns)
    }

    /// The packed weights of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.bytes[row * self.row_bytes()..][..self.row_bytes()]
    }

    /// One row as f32, into `out` (columns).
    ///
    /// # Panics
    /// If there is no such row or `out` is not one row long.
    pub fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.columns, "one row");
        self.kind.dequantise_row(self.row(row), out);
    }

    /// All weights as f32, (rows, columns).
    pub fn dequantise(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.columns];
        self.kind.dequantise_row(self.bytes, &mut out);
        out
    }

    /// Refuse weights that are not finite: one of them would make every answer NaN.
    ///
    /// # Errors
    /// [`Error::Model`] naming the tensor and the row.
    pub fn check_finite(&self) -> Result<()> {
        let bad = self.bytes.chunks_exact(self.row_bytes()).position(|row| !self.kind.finite(row));
        match bad {
            None => Ok(()),
            Some(row) => Err(Error::model(
                self.name,
                format!("row {row} holds a weight that is not finite; get the file again"),
            )),
        }
    }
}

impl Gguf {
    /// Map and check a file. The file must not change while it is open: the system ends a process
    /// that reads a page which is no longer there.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Model`] naming the key or tensor at fault.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        // Before opening: to open a pipe is to wait for whoever writes into it.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: read-only and private; the bytes are only ever read as bytes. Truncation by
        // another process is the caller's to prevent, as documented.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Self::new(Data::Mapped(map))
    }

    /// Check a file that is already in memory.
    ///
    /// # Errors
    /// [`Error::Model`] naming the key or tensor at fault.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::new(Data::Owned(bytes))
    }

    fn new(data: Data) -> Result<Self> {
        let parse::Parsed { metadata, tensors, by_name } = parse::parse(data.bytes())?;
        Ok(Self { data, metadata, tensors, by_name, sha256: OnceLock::new() })
    }

    /// Length of the file, bytes.
    pub fn len_bytes(&self) -> usize {
        self.data.bytes().len()
    }

    /// SHA-256 of the whole file; read on the first call, remembered after.
    pub fn sha256(&self) -> [u8; 32] {
        *self.sha256.get_or_init(|| Sha256::digest(self.data.bytes()).into())
    }

    /// `general.architecture`.
    ///
    /// # Errors
    /// [`Error::Model`] if the file does not say.
    pub fn architecture(&self) -> Result<&str> {
        self.string("general.architecture")
    }

    /// Whether the file has this metadata key, of whatever type.
    pub fn contains(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// All metadata keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A text.
    ///
    /// # Errors
    /// [`Error::Model`] if the key is missing or not a text.
    pub fn string(&self, key: &str) -> Result<&str> {
        self.optional_string(key)?.ok_or_else(|| missing(key))
    }

    /// A text, if the file has it.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not a text.
    pub fn optional_string(&self, key: &str) -> Result<Option<&str>> {
        let Some(entry) = self.metadata.get(key) else { return Ok(None) };
        let [text] = self.string_elements(key, entry, false)?[..] else {
            return Err(wrong_type(key, entry, "a text"));
        };
        Ok(Some(text))
    }

    /// An integer of any width.
    ///
    /// # Errors
    /// [`Error::Model`] if the key is missing, not an integer, or negative.
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.optional_u64(key)?.ok_or_else(|| missing(key))
    }

    /// An integer of any width, if the file has it.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not an integer or negative.
    pub fn optional_u64(&self, key: &str) -> Result<Option<u64>> {
        let Some(entry) = self.metadata.get(key) else { return Ok(None) };
        if entry.is_array {
            return Err(wrong_type(key, entry, "one whole number"));
        }
        let number = self.integers(key, entry)?[0];
        u64::try_from(number)
            .map(Some)
            .map_err(|_| Error::model(key, format!("{number} is negative or too large")))
    }

    /// A finite real number.
    ///
    /// # Errors
    /// [`Error::Model`] if the key is missing, not a real number, or not finite as f32.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.optional_f32(key)?.ok_or_else(|| missing(key))
    }

    /// A finite real number, if the file has it.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not a real number, or not finite as f32.
    pub fn optional_f32(&self, key: &str) -> Result<Option<f32>> {
        let Some(entry) = self.metadata.get(key) else { return Ok(None) };
        if entry.is_array {
            return Err(wrong_type(key, entry, "one real number"));
        }
        Ok(Some(self.reals(key, entry)?[0]))
    }

    /// Yes or no.
    ///
    /// # Errors
    /// [`Error::Model`] if the key is missing or neither.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.optional_bool(key)?.ok_or_else(|| missing(key))
    }

    /// Yes or no, if the file says.
    ///
    /// # Errors
    /// [`Error::Model`] if it is neither.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>> {
        let Some(entry) = self.metadata.get(key) else { return Ok(None) };
        if entry.is_array || entry.kind != ValueType::Bool {
            return Err(wrong_type(key, entry, "yes or no"));
        }
        Ok(Some(self.data.bytes()[entry.at] != 0))
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`Error::Model`] if the key is missing or not a list of texts.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>> {
        self.optional_strings(key)?.ok_or_else(|| missing(key))
    }

    /// A list of texts, if the file has it.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not a list of texts.
    pub fn optional_strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(entry) = self.metadata.get(key) else { return Ok(None) };
        self.string_elements(key, entry, true).map(Some)
    }

    /// A list of integers of any width, if the file has it.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not a list of integers.
    pub fn optional_i64s(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let Some(entry) = self.metadata.get(key) else { return Ok(None) };
        if !entry.is_array {
            return Err(wrong_type(key, entry, "a list of whole numbers"));
        }
        let numbers = self.integers(key, entry)?;
        let narrow = |number: i128| {
            i64::try_from(number).map_err(|_| Error::model(key, format!("{number} is too large")))
        };
        numbers.into_iter().map(narrow).collect::<Result<Vec<_>>>().map(Some)
    }

    /// A list of finite real numbers, if the file has it.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not a list of real numbers, or one is not finite as f32.
    pub fn optional_f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.metadata.get(key) else { return Ok(None) };
        if !entry.is_array {
            return Err(wrong_type(key, entry, "a list of real numbers"));
        }
        self.reals(key, entry).map(Some)
    }

    /// A tensor.
    ///
    /// # Errors
    /// [`Error::Model`] if the file does not have it.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.optional_tensor(name).ok_or_else(|| {
            Error::model(name, "the tensor is missing; the file is incomplete, get it again")
        })
    }

    /// A tensor, if the file has it.
    pub fn optional_tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name.get(name).map(|&index| self.view(&self.tensors[index]))
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|entry| self.view(entry))
    }

    fn view<'a>(&'a self, entry: &'a TensorEntry) -> TensorView<'a> {
        TensorView {
            name: &entry.name,
            rows: entry.rows,
            columns: entry.columns,
            kind: entry.kind,
            bytes: &self.data.bytes()[entry.at..][..entry.len_bytes],
        }
    }

    fn string_elements(&self, key: &str, entry: &Entry, array: bool) -> Result<Vec<&str>> {
        if entry.kind != ValueType::String || entry.is_array != array {
            let wanted = if array { "a list of texts" } else { "a text" };
            return Err(wrong_type(key, entry, wanted));
        }
        let mut texts = Vec::with_capacity(entry.len);
        let mut rest = &self.data.bytes()[entry.at..entry.end];
        while let Some((length, tail)) = rest.split_first_chunk::<8>() {
            let (text, after) = tail.split_at(u64::from_le_bytes(*length) as usize);
            // Checked on opening; checked again because it costs little and needs no `unsafe`.
            texts.push(std::str::from_utf8(text).map_err(|_| Error::model(key, "not UTF-8"))?);
            rest = after;
        }
        Ok(texts)
    }

    fn elements<const N: usize>(&self, entry: &Entry) -> impl Iterator<Item = [u8; N]> {
        self.data.bytes()[entry.at..entry.end].as_chunks::<N>().0.iter().copied()
    }

    fn integers(&self, key: &str, entry: &Entry) -> Result<Vec<i128>> {
        Ok(match entry.kind {
            ValueType::U8 => self.elements(entry).map(|b| u8::from_le_bytes(b).into()).collect(),
            ValueType::I8 => self.elements(entry).map(|b| i8::from_le_bytes(b).into()).collect(),
            ValueType::U16 => self.elements(entry).map(|b| u16::from_le_bytes(b).into()).collect(),
            ValueType::I16 => self.elements(entry).map(|b| i16::from_le_bytes(b).into()).collect(),
            ValueType::U32 => self.elements(entry).map(|b| u32::from_le_bytes(b).into()).collect(),
            ValueType::I32 => self.elements(entry).map(|b| i32::from_le_bytes(b).into()).collect(),
            ValueType::U64 => self.elements(entry).map(|b| u64::from_le_bytes(b).into()).collect(),
            ValueType::I64 => self.elements(entry).map(|b| i64::from_le_bytes(b).into()).collect(),
            _ => return Err(wrong_type(key, entry, "whole numbers")),
        })
    }

    fn reals(&self, key: &str, entry: &Entry) -> Result<Vec<f32>> {
        let reals: Vec<f32> = match entry.kind {
            ValueType::F32 => self.elements(entry).map(f32::from_le_bytes).collect(),
            ValueType::F64 => self.elements(entry).map(|b| f64::from_le_bytes(b) as f32).collect(),
            _ => return Err(wrong_type(key, entry, "real numbers")),
        };
        match reals.iter().find(|real| !real.is_finite()) {
            None => Ok(reals),
            Some(bad) => Err(Error::model(key, format!("{bad} is not a finite number"))),
        }
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Gguf")
            .field("len_bytes", &self.len_bytes())
            .field("metadata", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

fn missing(key: &str) -> Error {
    Error::model(key, "the key is missing; the file is incomplete or of another kind of model")
}

fn wrong_type(key: &str, entry: &Entry, wanted: &str) -> Error {
    let list = if entry.is_array { "a list of " } else { "" };
    Error::model(key, format!("is {list}{}, expected {wanted}", entry.kind.name()))
}

#[cfg(test)]
mod tests;
