//! Random but realistic model files, for tests and benchmarks.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, HashMap};

use qbtc_core::features::{TABLE, schema_sha256};
use qbtc_core::signal::{Isa, Model, N_FEATURES, PADDED, Row};
use safetensors::tensor::{Dtype, TensorView, serialize};

/// Tensors by name: shape and values; `perm` is stored as i32.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub struct Draw(pub u64);

impl Draw {
    /// Uniform in [-1, 1).
    pub fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * self.uniform()).collect()
    }
}

pub fn metadata(kind: &str) -> HashMap<String, String> {
    let names: Vec<_> = TABLE.iter().map(|f| f.name).collect();
    let pairs = [
        ("format", "qbtc-signal".to_owned()),
        ("version", "1".to_owned()),
        ("kind", kind.to_owned()),
        ("feature_names", serde_json::to_string(&names).unwrap()),
        ("feature_schema_sha256", schema_sha256()),
        ("label_horizon_ns", "1000000000".to_owned()),
        ("label_threshold_bp", "0.25".to_owned()),
        ("train_start_ns", "1700000000000000000".to_owned()),
        ("train_end_ns", "1700000600000000000".to_owned()),
        ("val_logloss", "1.04".to_owned()),
        ("val_ece", "0.02".to_owned()),
        ("baseline_logloss", r#"{"prior":1.09}"#.to_owned()),
        ("created", "2026-01-02T03:04:05Z".to_owned()),
        ("synthetic", "true".to_owned()),
        ("instrument", "BTCUSDT-PERP.BINANCE".to_owned()),
        ("seed", "7".to_owned()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Tensors of a random model; `size` is the bond or the hidden width.
pub fn tensors(kind: &str, size: usize, seed: u64) -> Tensors {
    const N: usize = N_FEATURES;
    let mut draw = Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut out = Tensors::new();
    let mut put = |name: &str, shape: &[usize], values: Vec<f32>| {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        out.insert(name.to_owned(), (shape.to_vec(), values));
    };
    put("mu", &[N], draw.values(N, 1.0));
    put("inv_scale", &[N], draw.values(N, 0.4).iter().map(|v| v + 0.6).collect());
    put("u_mean", &[N], draw.values(N, 0.1));
    put("temperature", &[1], vec![1.3]);
    put("guard_levels", &[5], vec![-2.0, -1.0, 0.0, 1.0, 2.0]);
    put("guard_knots", &[N, 5], [-2.0, -1.0, 0.0, 1.0, 2.0].repeat(N));
    let identity = (0..N * N).map(|i| f32::from(u8::from(i / N == i % N))).collect();
    put("guard_precision", &[N, N], identity);
    put("guard_tail", &[3], vec![-3.0, 0.0, 3.0]);
    put("guard_tail_level", &[3], vec![0.0, 0.5, 1.0]);
    match kind {
        "mps" => {
            let x = size;
            let scale = 0.25 / (x as f32).sqrt();
            put("A", &[N, 2, x, x], draw.values(N * 2 * x * x, scale));
            put("W", &[3, x, x], draw.values(3 * x * x, 2.0 / x as f32));
            put("l", &[x], draw.values(x, 1.0));
            put("r", &[x], draw.values(x, 1.0));
            put("b", &[3], draw.values(3, 0.3));
            put("perm", &[N], (0..N).map(|k| ((k * 7 + 3) % N) as f32).collect());
        }
        "logistic" => {
            put("weight", &[N, 3], draw.values(N * 3, 0.5));
            put("bias", &[3], draw.values(3, 0.3));
        }
        _ => {
            let h = size;
            put("w1", &[N, h], draw.values(N * h, 0.3));
            put("b1", &[h], draw.values(h, 0.3));
            put("w2", &[h, h], draw.values(h * h, 0.3));
            put("b2", &[h], draw.values(h, 0.3));
            put("w3", &[h, 3], draw.values(h * 3, 0.3));
            put("b3", &[3], draw.values(3, 0.3));
        }
    }
    out
}

pub fn file(tensors: &Tensors, metadata: HashMap<String, String>) -> Vec<u8> {
    let bytes: BTreeMap<_, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| {
            let encode = |v: &f32| {
                if name == "perm" { (*v as i32).to_le_bytes() } else { v.to_le_bytes() }
            };
            (name, values.iter().flat_map(encode).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let dtype = if name == "perm" { Dtype::I32 } else { Dtype::F32 };
        (name, TensorView::new(dtype, shape.clone(), &bytes[name]).unwrap())
    });
    serialize(views, Some(metadata)).unwrap()
}

/// `mps8`, `mps16`, `logistic`, `mlp32`: kind and size.
pub fn kind_of(name: &str) -> (&str, usize) {
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (kind, name[kind.len()..].parse().unwrap_or(0))
}

pub fn model(name: &str, isa: Isa) -> Model {
    let (kind, size) = kind_of(name);
    let bytes = file(&tensors(kind, size, 1), metadata(kind));
    Model::from_bytes(&bytes, &schema_sha256(), isa).unwrap()
}

pub fn rows(n: usize, seed: u64, missing: f32) -> Vec<Row> {
    let mut draw = Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let one = |draw: &mut Draw| {
        let mut row = [0.0; PADDED];
        for x in &mut row[..N_FEATURES] {
            *x = 4.0 * draw.uniform();
            if draw.uniform() < 2.0 * missing - 1.0 {
                *x = f32::NAN;
            }
        }
        row
    };
    (0..n).map(|_| one(&mut draw)).collect()
}
