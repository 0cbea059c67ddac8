//! The header of a GGUF file: one pass, every number checked before it is used.

use std::collections::HashMap;
use std::ops::Range;

use super::{
    ALIGNMENT_BYTES_MAX, ARRAY_ELEMENTS_MAX, KEY_BYTES_MAX, METADATA_KEYS_MAX, STRING_BYTES_MAX,
    TENSOR_DIMENSIONS_MAX, TENSOR_NAME_BYTES_MAX, TENSORS_MAX, TensorKind,
};
use crate::{Error, Result};

/// Where the tensor data is aligned to, unless the file says otherwise.
pub(super) const ALIGNMENT_BYTES_DEFAULT: usize = 32;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Type of a metadata value, or of the elements of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

/// The code of an array in the file; its elements are of a [`ValueType`].
pub(super) const ARRAY_CODE: u32 = 9;

impl ValueType {
    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of one value; `None` where each says its own length.
    fn size(self) -> Option<usize> {
        Some(match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::String => return None,
        })
    }
}

/// A metadata value: `len` elements of `kind` in bytes `at..end` of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) kind: ValueType,
    pub(super) is_array: bool,
    pub(super) len: usize,
    pub(super) at: usize,
    pub(super) end: usize,
}

/// A tensor: bytes `at..at + len_bytes` of the file.
#[derive(Clone, Debug)]
pub(super) struct TensorEntry {
    pub(super) name: String,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) kind: TensorKind,
    pub(super) at: usize,
    pub(super) len_bytes: usize,
}

pub(super) struct Parsed {
    pub(super) metadata: HashMap<String, Entry>,
    pub(super) tensors: Vec<TensorEntry>,
    pub(super) by_name: HashMap<String, usize>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Parsed> {
    let mut cursor = Cursor { bytes, at: 0 };
    let (tensors_len, keys_len) = header(&mut cursor)?;
    // Maps grow as entries are read: a false count allocates nothing.
    let mut metadata = HashMap::new();
    for index in 0..keys_len {
        let (key, entry) = key_value(&mut cursor, index)?;
        if metadata.contains_key(&key) {
            return Err(Error::model(key, "the key is there twice; the file is damaged"));
        }
        metadata.insert(key, entry);
    }
    let alignment = alignment(bytes, &metadata)?;
    let mut tensors = Vec::new();
    let mut by_name = HashMap::new();
    for index in 0..tensors_len {
        let entry = tensor_entry(&mut cursor, index, alignment)?;
        if by_name.insert(entry.name.clone(), index).is_some() {
            return Err(Error::model(entry.name, "the tensor is there twice; the file is damaged"));
        }
        tensors.push(entry);
    }
    place(&mut tensors, cursor.at.next_multiple_of(alignment), bytes.len())?;
    Ok(Parsed { metadata, tensors, by_name })
}

/// Magic, version and the two counts: (tensors, metadata keys).
fn header(cursor: &mut Cursor<'_>) -> Result<(usize, usize)> {
    let magic = cursor.take(MAGIC.len(), "header")?;
    if magic != MAGIC {
        let found = magic.escape_ascii();
        return Err(Error::model(
            "magic",
            format!("the file begins with `{found}`, not with `GGUF`; give a .gguf file"),
        ));
    }
    match cursor.u32("version")? {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => {
            return Err(Error::model("version", "the file is big-endian; convert it to little"));
        }
        version => {
            return Err(Error::model(
                "version",
                format!("{version} is not supported (2 and 3 are); convert the file again"),
            ));
        }
    }
    let tensors = cursor.count("tensor count", TENSORS_MAX)?;
    let keys = cursor.count("metadata count", METADATA_KEYS_MAX)?;
    Ok((tensors, keys))
}

fn key_value(cursor: &mut Cursor<'_>, index: usize) -> Result<(String, Entry)> {
    let unnamed = format!("metadata key {index}");
    let key = cursor.name(&unnamed, KEY_BYTES_MAX)?;
    let code = cursor.u32(&key)?;
    let is_array = code == ARRAY_CODE;
    let code = if is_array { cursor.u32(&key)? } else { code };
    let Some(kind) = ValueType::from_code(code) else {
        let reason = if is_array && code == ARRAY_CODE {
            "a list of lists, which no supported model has".to_owned()
        } else {
            format!("unknown value type {code}")
        };
        return Err(Error::model(key, reason));
    };
    let len = if is_array { cursor.count(&key, ARRAY_ELEMENTS_MAX)? } else { 1 };
    let at = cursor.at;
    match kind.size() {
        Some(size) => {
            // Both factors are bounded: 16 Mi elements of 8 bytes.
            let values = cursor.take(len * size, &key)?;
            if kind == ValueType::Bool && values.iter().any(|&byte| byte > 1) {
                return Err(Error::model(key, "a yes/no value is neither 0 nor 1"));
            }
        }
        None => {
            for _ in 0..len {
                cursor.text(&key, STRING_BYTES_MAX)?;
            }
        }
    }
    Ok((key, Entry { kind, is_array, len, at, end: cursor.at }))
}

fn alignment(bytes: &[u8], metadata: &HashMap<String, Entry>) -> Result<usize> {
    let Some(entry) = metadata.get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT_BYTES_DEFAULT) };
    if entry.is_array || entry.kind != ValueType::U32 {
        return Err(Error::model(ALIGNMENT_KEY, "must be a u32"));
    }
    let value = Cursor { bytes, at: entry.at }.u32(ALIGNMENT_KEY)? as usize;
    if !value.is_power_of_two() || value > ALIGNMENT_BYTES_MAX {
        return Err(Error::model(
            ALIGNMENT_KEY,
            format!("{value} is not a power of two of at most {ALIGNMENT_BYTES_MAX}"),
        ));
    }
    Ok(value)
}

/// Name, shape, kind and offset; `at` is still relative to the tensor data.
fn tensor_entry(cursor: &mut Cursor<'_>, index: usize, alignment: usize) -> Result<TensorEntry> {
    let unnamed = format!("tensor {index}");
    let name = cursor.name(&unnamed, TENSOR_NAME_BYTES_MAX)?;
    let dimensions = cursor.u32(&name)? as usize;
    if !(1..=TENSOR_DIMENSIONS_MAX).contains(&dimensions) {
        return Err(Error::model(
            name,
            format!("{dimensions} dimensions, expected 1 to {TENSOR_DIMENSIONS_MAX}"),
        ));
    }
    let columns = cursor.dimension(&name)?;
    let mut rows = 1_usize;
    for _ in 1..dimensions {
        rows = rows
            .checked_mul(cursor.dimension(&name)?)
            .ok_or_else(|| Error::model(&name, "the shape is too large for this machine"))?;
    }
    let code = cursor.u32(&name)?;
    let kind = TensorKind::from_code(code).ok_or_else(|| {
        let supported = TensorKind::ALL.map(TensorKind::name).join(", ");
        let found = kind_name(code);
        Error::model(
            &name,
            format!("quantisation {found} is not supported; use a file with {supported}"),
        )
    })?;
    if !columns.is_multiple_of(kind.block_len()) {
        return Err(Error::model(
            name,
            format!("rows of {columns} do not divide into {} blocks", kind.name()),
        ));
    }
    let len_bytes = kind
        .checked_row_bytes(columns)
        .and_then(|row| row.checked_mul(rows))
        .ok_or_else(|| Error::model(&name, "the shape is too large for this machine"))?;
    let at = cursor.size(&name)?;
    if !at.is_multiple_of(alignment) {
        return Err(Error::model(
            name,
            format!("its offset {at} is not a multiple of the alignment {alignment}"),
        ));
    }
    Ok(TensorEntry { name, rows, columns, kind, at, len_bytes })
}

/// Make offsets absolute, and check that every tensor is inside the file and alone there.
fn place(tensors: &mut [TensorEntry], start: usize, file_len: usize) -> Result<()> {
    let mut ranges: Vec<(Range<usize>, usize)> = Vec::with_capacity(tensors.len());
    for (index, tensor) in tensors.iter_mut().enumerate() {
        let at = start.checked_add(tensor.at);
        let end = at.and_then(|at| at.checked_add(tensor.len_bytes));
        let (Some(at), Some(end)) = (at, end.filter(|&end| end <= file_len)) else {
            return Err(Error::model(
                &tensor.name,
                format!(
                    "{} bytes at {} of the data reach past the end of the file ({file_len} \
                     bytes); the download is incomplete, get it again",
                    tensor.len_bytes, tensor.at
                ),
            ));
        };
        tensor.at = at;
        ranges.push((at..end, index));
    }
    ranges.sort_unstable_by_key(|(range, _)| range.start);
    for pair in ranges.windows(2) {
        if pair[1].0.start < pair[0].0.end {
            let other = &tensors[pair[0].1].name;
            return Err(Error::model(
                &tensors[pair[1].1].name,
                format!("lies on top of `{other}`; the file is damaged"),
            ));
        }
    }
    Ok(())
}

/// Reads forward; a read past the end names the field that is cut off.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize, field: &str) -> Result<&'a [u8]> {
        let taken = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| {
            Error::model(
                field,
                format!(
                    "needs {len} bytes at {} but the file has {}; the download is incomplete, \
                     get it again",
                    self.at,
                    self.bytes.len()
                ),
            )
        })?;
        self.at += len;
        Ok(taken)
    }

    fn u32(&mut self, field: &str) -> Result<u32> {
        let bytes = self.take(4, field)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A 64-bit number that must fit this machine.
    fn size(&mut self, field: &str) -> Result<usize> {
        let mut number = [0; 8];
        number.copy_from_slice(self.take(8, field)?);
        let number = u64::from_le_bytes(number);
        usize::try_from(number)
            .map_err(|_| Error::model(field, format!("{number} is too large for this machine")))
    }

    fn count(&mut self, field: &str, max: usize) -> Result<usize> {
        let count = self.size(field)?;
        if count > max {
            return Err(Error::model(field, format!("{count} entries, at most {max} are read")));
        }
        Ok(count)
    }

    fn dimension(&mut self, field: &str) -> Result<usize> {
        match self.size(field)? {
            0 => Err(Error::model(field, "a dimension of the tensor is zero")),
            length => Ok(length),
        }
    }

    /// A length and that many bytes of UTF-8.
    fn text(&mut self, field: &str, bytes_max: usize) -> Result<&'a str> {
        let len = self.size(field)?;
        if len > bytes_max {
            return Err(Error::model(
                field,
                format!("a text of {len} bytes, at most {bytes_max} are read"),
            ));
        }
        std::str::from_utf8(self.take(len, field)?)
            .map_err(|_| Error::model(field, "a text is not UTF-8"))
    }

    /// A text that names something: not empty, no control characters.
    fn name(&mut self, field: &str, bytes_max: usize) -> Result<String> {
        let name = self.text(field, bytes_max)?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(Error::model(field, "its name is empty or has control characters"));
        }
        Ok(name.to_owned())
    }
}

/// What ggml calls the kinds that are not supported, for the error message.
fn kind_name(code: u32) -> String {
    let name = match code {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "integers",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("{code} (unknown)"),
    };
    name.to_owned()
}
