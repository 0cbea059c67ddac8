//! A loaded model, and the session that applies it.

use std::path::Path;
use std::sync::Arc;

use super::file::{self, Metadata, Parts, Weights};
use super::logistic::Logistic;
use super::mlp::{self, Mlp};
use super::mps::{self, Mps};
use super::preprocess::{Preprocess, padded};
use super::{
    Guard, Isa, Kind, N_CLASSES, N_FEATURES, PADDED, PerClass, Predictor, Probabilities, Row,
};
use crate::{Error, Result};

/// Below this many rows a batch stays on the calling thread: starting a thread costs about 20 µs.
pub const BATCH_ROWS_PER_THREAD_MIN: usize = 1024;

/// A checked model, read-only: share it in an `Arc`.
#[derive(Debug)]
pub struct Model {
    predictor: Box<dyn Predictor>,
    guard: Guard,
    metadata: Metadata,
    isa: Isa,
}

impl Model {
    /// Reads a model file for the feature schema of this build, with the best instruction set
    /// (or the one `QBTC_ISA` names).
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Model`] naming the tensor or metadata key at fault.
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_with(path, Isa::detect()?)
    }

    /// As [`Model::load`], with an explicit instruction set.
    ///
    /// # Errors
    /// As [`Model::load`]; [`Error::Input`] if this processor does not have `isa`.
    pub fn load_with(path: &Path, isa: Isa) -> Result<Self> {
        let bytes = file::read_bytes(path)?;
        Self::from_bytes(&bytes, &crate::features::schema_sha256(), isa)
    }

    /// A model from the content of a file, trained on the feature schema `schema`.
    ///
    /// # Errors
    /// As [`Model::load_with`].
    pub fn from_bytes(bytes: &[u8], schema: &str, isa: Isa) -> Result<Self> {
        Self::new(file::parse(bytes, schema)?, isa)
    }

    fn new(parts: Parts, isa: Isa) -> Result<Self> {
        if !isa.available() {
            return Err(Error::input(
                "isa",
                format!("this processor does not have {}", isa.name()),
            ));
        }
        let pre = Preprocess::new(&parts.mu, &parts.inv_scale, &parts.u_mean);
        let guard = Guard::new(parts.guard, padded(&parts.inv_scale))?;
        let predictor = predictor(pre, &parts.weights, parts.temperature, isa)?;
        Ok(Self { predictor, guard, metadata: parts.metadata, isa })
    }

    /// Which mathematics this is.
    pub fn kind(&self) -> Kind {
        self.predictor.kind()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Probabilities for one row.
    #[inline]
    pub fn infer(&self, x: &Row) -> Probabilities {
        self.predictor.probabilities(x).into()
    }

    /// Logits before the temperature.
    pub fn logits(&self, x: &Row) -> PerClass {
        self.predictor.logits(x)
    }

    /// Logit changes when one feature is replaced by its training mean, shape (26, 3).
    pub fn explain(&self, x: &Row) -> [PerClass; N_FEATURES] {
        self.predictor.explain(x)
    }

    /// Out-of-distribution score, 0 to 1; see [`super::guard`].
    pub fn ood(&self, x: &Row) -> f32 {
        self.guard.score(x)
    }

    /// Probabilities of many rows, the same bits as [`Model::infer`] one by one, on up to
    /// `threads` threads. `x` is (n, 26) row major, `out` (n, 3).
    ///
    /// # Errors
    /// [`Error::Input`] if the lengths do not fit.
    pub fn infer_batch(&self, x: &[f32], out: &mut [f32], threads: usize) -> Result<()> {
        let n = x.len() / N_FEATURES;
        if x.len() != n * N_FEATURES || out.len() != n * N_CLASSES {
            let reason = format!("{} features and {} outputs do not fit", x.len(), out.len());
            return Err(Error::input("x", reason));
        }
        let parts = threads.min(n / BATCH_ROWS_PER_THREAD_MIN).max(1);
        let rows = n.div_ceil(parts).max(1);
        std::thread::scope(|scope| {
            let chunks = x.chunks(rows * N_FEATURES).zip(out.chunks_mut(rows * N_CLASSES));
            // The first chunk is ours; the others get a thread each.
            let mut chunks = chunks.into_iter();
            let own = chunks.next();
            for (x, out) in chunks {
                scope.spawn(move || self.infer_rows(x, out));
            }
            if let Some((x, out)) = own {
                self.infer_rows(x, out);
            }
        });
        Ok(())
    }

    fn infer_rows(&self, x: &[f32], out: &mut [f32]) {
        let mut row = [0.0; PADDED];
        let (rows, outs) = (x.chunks_exact(N_FEATURES), out.as_chunks_mut::<N_CLASSES>().0);
        for (x, out) in rows.zip(outs) {
            row[..N_FEATURES].copy_from_slice(x);
            *out = self.predictor.probabilities(&row);
        }
    }
}

fn predictor(pre: Preprocess, weights: &Weights, t: f32, isa: Isa) -> Result<Box<dyn Predictor>> {
    Ok(match weights {
        Weights::Mps { bond, a, w, l, r, b, perm } => {
            let tensors = mps::Tensors { a, w, l, r, b, perm };
            match bond {
                8 => Box::new(Mps::<8>::new(pre, &tensors, t, isa)?),
                16 => Box::new(Mps::<16>::new(pre, &tensors, t, isa)?),
                _ => unreachable!("Invariant: the file's bond was checked to be 8 or 16"),
            }
        }
        Weights::Logistic { weight, bias } => Box::new(Logistic::new(pre, weight, bias, t, isa)?),
        Weights::Mlp { hidden, w1, b1, w2, b2, w3, b3 } => {
            let tensors = mlp::Tensors { w1, b1, w2, b2, w3, b3 };
            Box::new(Mlp::new(pre, *hidden, &tensors, t, isa)?)
        }
    })
}

/// A model and the row it reads, allocated once.
#[derive(Clone, Debug)]
pub struct Session {
    model: Arc<Model>,
    /// The row that [`Session::infer`] reads; write features here.
    pub x: Row,
}

impl Session {
    /// A session with all features missing.
    pub fn new(model: Arc<Model>) -> Self {
        let mut x = [f32::NAN; PADDED];
        x[N_FEATURES..].fill(0.0);
        Self { model, x }
    }

    /// The shared model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Probabilities for the row `x`.
    #[inline]
    pub fn infer(&self) -> Probabilities {
        self.model.infer(&self.x)
    }
}
