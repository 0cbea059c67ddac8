//! Reading a model file: safetensors with string metadata. Everything that could go wrong later
//! is refused here, naming the tensor or metadata key at fault.
//!
//! A file is at most [`FILE_BYTES_MAX`] long. Its metadata has every key of [`METADATA_KEYS`] and
//! its tensors are those of its kind, f32 unless said otherwise (n = 26, X = bond, h = hidden):
//!
//! | kind | tensors |
//! |---|---|
//! | all | `mu (n)`, `inv_scale (n)`, `u_mean (n)`, `temperature (1)`, `guard_knots (n,K)`, `guard_levels (K)`, `guard_precision (n,n)`, `guard_tail (Q)`, `guard_tail_level (Q)` |
//! | mps | `A (n,2,X,X)`, `W (3,X,X)`, `l (X)`, `r (X)`, `b (3)`, `perm (n)` int32 |
//! | logistic | `weight (n,3)`, `bias (3)` |
//! | mlp | `w1 (n,h)`, `b1 (h)`, `w2 (h,h)`, `b2 (h)`, `w3 (h,3)`, `b3 (3)` |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::{Kind, N_CLASSES, N_FEATURES};
use crate::{Error, Result};

/// Largest model file read.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// Largest safetensors header read.
pub const HEADER_BYTES_MAX: u64 = 256 << 10;
/// Hidden units of an `mlp`.
pub const HIDDEN_MAX: usize = 128;
/// Bond dimensions with kernels.
pub const BONDS: [usize; 2] = [8, 16];
/// Quantile knots of the guard per feature.
pub const KNOTS_MAX: usize = 257;
/// Steps of the guard's tail table.
pub const TAIL_MAX: usize = 1025;
/// No logit (over the temperature) may be able to exceed this: f32 then cannot overflow.
pub const LOGIT_BOUND_MAX: f64 = 1e30;
/// Value of the metadata key `format`.
pub const FORMAT: &str = "qbtc-signal";
/// Value of the metadata key `version`.
pub const VERSION: &str = "1";
/// Keys every file has; all values are strings.
pub const METADATA_KEYS: [&str; 16] = [
    "format",
    "kind",
    "version",
    "feature_names",
    "feature_schema_sha256",
    "label_horizon_ns",
    "label_threshold_bp",
    "train_start_ns",
    "train_end_ns",
    "val_logloss",
    "val_ece",
    "baseline_logloss",
    "created",
    "synthetic",
    "instrument",
    "seed",
];

/// Strings of the file's `__metadata__`.
pub type Metadata = BTreeMap<String, String>;

/// The checked content of a model file, in file layout (row major).
#[derive(Clone, Debug)]
pub struct Parts {
    /// Checked metadata.
    pub metadata: Metadata,
    /// (26) centre of each feature.
    pub mu: Vec<f32>,
    /// (26) one over the scale, positive.
    pub inv_scale: Vec<f32>,
    /// (26) training mean of u, in [-1, 1].
    pub u_mean: Vec<f32>,
    /// Softmax temperature, positive.
    pub temperature: f32,
    /// Tensors of the guard.
    pub guard: GuardParts,
    /// Tensors of the kind.
    pub weights: Weights,
}

/// Tensors of the out-of-distribution guard, see [`super::guard`].
#[derive(Clone, Debug)]
pub struct GuardParts {
    /// (26, K) training quantiles, non-decreasing per feature.
    pub knots: Vec<f32>,
    /// (K) normal scores of the knots, increasing.
    pub levels: Vec<f32>,
    /// (26, 26) inverse correlation of the normal scores, symmetric positive definite.
    pub precision: Vec<f32>,
    /// (Q) training quantiles of the standardised distance, non-decreasing.
    pub tail: Vec<f32>,
    /// (Q) their probabilities in [0, 1], non-decreasing.
    pub tail_level: Vec<f32>,
}

/// Tensors that differ by kind, in file layout.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "names and shapes are those of the table above")]
pub enum Weights {
    Mps {
        bond: usize,
        a: Vec<f32>,
        w: Vec<f32>,
        l: Vec<f32>,
        r: Vec<f32>,
        b: Vec<f32>,
        perm: [u8; N_FEATURES],
    },
    Logistic {
        weight: Vec<f32>,
        bias: Vec<f32>,
    },
    Mlp {
        hidden: usize,
        w1: Vec<f32>,
        b1: Vec<f32>,
        w2: Vec<f32>,
        b2: Vec<f32>,
        w3: Vec<f32>,
        b3: Vec<f32>,
    },
}

impl Weights {
    /// Which kind these are.
    pub fn kind(&self) -> Kind {
        match *self {
            Self::Mps { bond, .. } => Kind::Mps { bond },
            Self::Logistic { .. } => Kind::Logistic,
            Self::Mlp { hidden, .. } => Kind::Mlp { hidden },
        }
    }
}

/// Reads a whole model file.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Model`] if it is longer than [`FILE_BYTES_MAX`].
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(io)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::model("file", format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// Checks and decodes a model file; `schema` is the feature schema it must have been trained on.
///
/// # Errors
/// [`Error::Model`] naming the first tensor or metadata key that is wrong.
pub fn parse(bytes: &[u8], schema: &str) -> Result<Parts> {
    check_header_length(bytes)?;
    let broken = |e: safetensors::SafeTensorError| {
        Error::model("header", format!("not a safetensors file, or damaged ({e})"))
    };
    let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let metadata: Metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    check_metadata(&metadata, schema)?;
    let file = Tensors { tensors };
    let guard = guard_parts(&file)?;
    let weights = weights(&file, &metadata["kind"])?;
    file.refuse_unknown(weights.kind())?;
    let mu = file.f32s("mu", &[N_FEATURES])?;
    let inv_scale = file.f32s("inv_scale", &[N_FEATURES])?;
    require(inv_scale.iter().all(|&s| s > 0.0), "inv_scale", "not positive")?;
    let u_mean = file.f32s("u_mean", &[N_FEATURES])?;
    require(u_mean.iter().all(|u| u.abs() <= 1.0), "u_mean", "outside [-1, 1]")?;
    let temperature = file.f32s("temperature", &[1])?[0];
    require(temperature > 0.0 && (1.0 / temperature).is_finite(), "temperature", "not positive")?;
    Ok(Parts { metadata, mu, inv_scale, u_mean, temperature, guard, weights })
}

fn require(ok: bool, field: &str, reason: &str) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::model(field, reason)) }
}

/// The first 8 bytes are the header's length; a hostile one must not make us allocate.
fn check_header_length(bytes: &[u8]) -> Result<()> {
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(Error::model("header", format!("file is only {} bytes long", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        let reason = format!("says it is {length} bytes long, limit {HEADER_BYTES_MAX}");
        return Err(Error::model("header", reason));
    }
    Ok(())
}

fn check_metadata(metadata: &Metadata, schema: &str) -> Result<()> {
    for key in METADATA_KEYS {
        require(metadata.contains_key(key), key, "missing from the metadata")?;
    }
    expect_value(metadata, "format", FORMAT)?;
    expect_value(metadata, "version", VERSION)?;
    if metadata["feature_schema_sha256"] != schema {
        let reason = format!(
            "`{:.64}` is not the schema of this version ({schema}); train the model again",
            metadata["feature_schema_sha256"]
        );
        return Err(Error::model("feature_schema_sha256", reason));
    }
    let names: Vec<String> = serde_json::from_str(&metadata["feature_names"])
        .map_err(|e| Error::model("feature_names", format!("not a JSON list of strings ({e})")))?;
    require(names.len() == N_FEATURES, "feature_names", "does not name 26 features")?;
    require(integer(metadata, "label_horizon_ns")? > 0, "label_horizon_ns", "not positive")?;
    require(number(metadata, "label_threshold_bp")? >= 0.0, "label_threshold_bp", "negative")?;
    let span = (integer(metadata, "train_start_ns")?, integer(metadata, "train_end_ns")?);
    require(span.0 <= span.1, "train_end_ns", "before train_start_ns")?;
    require(number(metadata, "val_logloss")? >= 0.0, "val_logloss", "negative")?;
    require((0.0..=1.0).contains(&number(metadata, "val_ece")?), "val_ece", "outside [0, 1]")?;
    serde_json::from_str::<BTreeMap<String, f64>>(&metadata["baseline_logloss"]).map_err(|e| {
        Error::model("baseline_logloss", format!("not a JSON object of numbers ({e})"))
    })?;
    let synthetic = metadata["synthetic"].as_str();
    require(matches!(synthetic, "true" | "false"), "synthetic", "neither `true` nor `false`")?;
    require(integer(metadata, "seed")? >= 0, "seed", "negative")?;
    require(!metadata["created"].is_empty(), "created", "empty")
}

fn expect_value(metadata: &Metadata, key: &str, expected: &str) -> Result<()> {
    let found = &metadata[key];
    if found == expected {
        return Ok(());
    }
    Err(Error::model(key, format!("is `{found:.64}`, this version reads `{expected}`")))
}

fn integer(metadata: &Metadata, key: &str) -> Result<i64> {
    metadata[key]
        .parse()
        .map_err(|_| Error::model(key, format!("`{:.64}` is not an integer", metadata[key])))
}

fn number(metadata: &Metadata, key: &str) -> Result<f64> {
    let value: Option<f64> = metadata[key].parse().ok();
    value
        .filter(|v| v.is_finite())
        .ok_or_else(|| Error::model(key, format!("`{:.64}` is not a finite number", metadata[key])))
}

fn guard_parts(file: &Tensors) -> Result<GuardParts> {
    let k = file.length("guard_levels", 2, KNOTS_MAX)?;
    let q = file.length("guard_tail", 2, TAIL_MAX)?;
    let parts = GuardParts {
        knots: file.f32s("guard_knots", &[N_FEATURES, k])?,
        levels: file.f32s("guard_levels", &[k])?,
        precision: file.f32s("guard_precision", &[N_FEATURES, N_FEATURES])?,
        tail: file.f32s("guard_tail", &[q])?,
        tail_level: file.f32s("guard_tail_level", &[q])?,
    };
    let ordered = |values: &[f32]| values.is_sorted();
    require(parts.knots.chunks(k).all(ordered), "guard_knots", "not sorted per feature")?;
    let increasing = parts.levels.windows(2).all(|w| w[0] < w[1]);
    require(increasing, "guard_levels", "not increasing")?;
    require(ordered(&parts.tail), "guard_tail", "not sorted")?;
    require(ordered(&parts.tail_level), "guard_tail_level", "not sorted")?;
    let inside = parts.tail_level.iter().all(|p| (0.0..=1.0).contains(p));
    require(inside, "guard_tail_level", "outside [0, 1]")?;
    Ok(parts)
}

fn weights(file: &Tensors, kind: &str) -> Result<Weights> {
    const N: usize = N_FEATURES;
    const C: usize = N_CLASSES;
    match kind {
        "mps" => {
            let x = file.length("l", 1, BONDS[1])?;
            if !BONDS.contains(&x) {
                return Err(Error::model("l", format!("bond {x} is not 8 or 16")));
            }
            Ok(Weights::Mps {
                bond: x,
                a: file.f32s("A", &[N, 2, x, x])?,
                w: file.f32s("W", &[C, x, x])?,
                l: file.f32s("l", &[x])?,
                r: file.f32s("r", &[x])?,
                b: file.f32s("b", &[C])?,
                perm: file.permutation("perm")?,
            })
        }
        "logistic" => Ok(Weights::Logistic {
            weight: file.f32s("weight", &[N, C])?,
            bias: file.f32s("bias", &[C])?,
        }),
        "mlp" => {
            let h = file.length("b1", 1, HIDDEN_MAX)?;
            Ok(Weights::Mlp {
                hidden: h,
                w1: file.f32s("w1", &[N, h])?,
                b1: file.f32s("b1", &[h])?,
                w2: file.f32s("w2", &[h, h])?,
                b2: file.f32s("b2", &[h])?,
                w3: file.f32s("w3", &[h, C])?,
                b3: file.f32s("b3", &[C])?,
            })
        }
        _ => Err(Error::model("kind", format!("`{kind:.64}` is not mps, logistic or mlp"))),
    }
}

/// Typed access to the tensors of a file.
struct Tensors<'a> {
    tensors: SafeTensors<'a>,
}

impl Tensors<'_> {
    /// The tensor's bytes, if it has this dtype and shape.
    fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8]> {
        let tensor = self.tensors.tensor(name).map_err(|_| Error::model(name, "missing"))?;
        if tensor.dtype() != dtype {
            let reason = format!("is {:?}, not {dtype:?}", tensor.dtype());
            return Err(Error::model(name, reason));
        }
        if tensor.shape() != shape {
            let reason = format!("has shape {:?}, not {shape:?}", tensor.shape());
            return Err(Error::model(name, reason));
        }
        Ok(tensor.data())
    }

    fn f32s(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let bytes = self.bytes(name, Dtype::F32, shape)?;
        let values: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        require(values.iter().all(|v| v.is_finite()), name, "not finite")?;
        Ok(values)
    }

    fn permutation(&self, name: &str) -> Result<[u8; N_FEATURES]> {
        let bytes = self.bytes(name, Dtype::I32, &[N_FEATURES])?;
        let mut perm = [0; N_FEATURES];
        let mut seen = [false; N_FEATURES];
        for (site, b) in perm.iter_mut().zip(bytes.as_chunks::<4>().0) {
            let index = i32::from_le_bytes(*b);
            let free = usize::try_from(index).ok().and_then(|i| seen.get_mut(i));
            match free {
                Some(taken) if !*taken => *taken = true,
                _ => return Err(Error::model(name, "not a permutation of 0..25")),
            }
            *site = index as u8;
        }
        Ok(perm)
    }

    /// Length of a vector whose size is free within limits.
    fn length(&self, name: &str, min: usize, max: usize) -> Result<usize> {
        let tensor = self.tensors.tensor(name).map_err(|_| Error::model(name, "missing"))?;
        match tensor.shape() {
            &[n] if (min..=max).contains(&n) => Ok(n),
            shape => Err(Error::model(name, format!("has shape {shape:?}, not ({min}..={max})"))),
        }
    }

    /// A tensor we do not know might be one the model needs.
    fn refuse_unknown(&self, kind: Kind) -> Result<()> {
        const COMMON: [&str; 9] = [
            "mu",
            "inv_scale",
            "u_mean",
            "temperature",
            "guard_knots",
            "guard_levels",
            "guard_precision",
            "guard_tail",
            "guard_tail_level",
        ];
        let own: &[&str] = match kind {
            Kind::Mps { .. } => &["A", "W", "l", "r", "b", "perm"],
            Kind::Logistic => &["weight", "bias"],
            Kind::Mlp { .. } => &["w1", "b1", "w2", "b2", "w3", "b3"],
        };
        let known = |name: &&str| COMMON.contains(name) || own.contains(name);
        match self.tensors.names().into_iter().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => {
                let reason = format!("not a tensor of kind {}", kind.name());
                Err(Error::model(format!("{name:.64}"), reason))
            }
        }
    }
}
