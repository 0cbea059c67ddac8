//! Signal models: oracle, ablation, instruction sets, and files that must be refused.

mod signal_files;

use std::collections::HashMap;

use proptest::prelude::*;
use qbtc_core::Error;
use qbtc_core::features::schema_sha256;
use qbtc_core::signal::reference::{MpsReference, softmax, squash};
use qbtc_core::signal::{Isa, LEFT_SITES, Model, N_FEATURES, Row};
use signal_files::{Draw, Tensors, file, kind_of, metadata, model, rows, tensors};

const NAMES: [&str; 6] = ["mps8", "mps16", "logistic", "mlp1", "mlp32", "mlp128"];

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn load(bytes: &[u8]) -> Result<Model, Error> {
    Model::from_bytes(bytes, &schema_sha256(), Isa::best())
}

/// The field that a refusal names.
fn refused(tensors: &Tensors, metadata: HashMap<String, String>) -> String {
    match load(&file(tensors, metadata)) {
        Err(Error::Model { field, .. }) => field,
        other => panic!("expected a model error, got {other:?}"),
    }
}

#[test]
fn the_reference_equals_the_sum_over_all_monomials() {
    for (sites, left_sites, bond) in [(1, 1, 2), (4, 2, 3), (7, 4, 3), (10, 5, 4)] {
        let mut draw = Draw(sites as u64);
        let mut doubles = |n: usize, scale: f32| -> Vec<f64> {
            draw.values(n, scale).iter().map(|&v| f64::from(v)).collect()
        };
        let mps = MpsReference {
            sites,
            left_sites,
            bond,
            a: doubles(sites * 2 * bond * bond, 0.4),
            w: doubles(3 * bond * bond, 1.0),
            l: doubles(bond, 1.0),
            r: doubles(bond, 1.0),
            b: doubles(3, 1.0),
            perm: (0..sites).rev().collect(),
        };
        let u = doubles(sites, 1.0);
        for (a, b) in mps.logits(&u).iter().zip(mps.brute_force(&u)) {
            assert!((a - b).abs() < 1e-10 * b.abs().max(1.0), "{sites} sites: {a} and {b}");
        }
    }
}

/// The kernels against the f64 reference, which knows neither pairs nor ends.
#[test]
fn mps_kernels_equal_the_reference_on_every_instruction_set() {
    for name in ["mps8", "mps16"] {
        let (kind, bond) = kind_of(name);
        let t = tensors(kind, bond, 1);
        let values = |name: &str| t[name].1.as_slice();
        let reference = MpsReference {
            sites: N_FEATURES,
            left_sites: LEFT_SITES,
            bond,
            a: doubles(values("A")),
            w: doubles(values("W")),
            l: doubles(values("l")),
            r: doubles(values("r")),
            b: doubles(values("b")),
            perm: values("perm").iter().map(|&i| i as usize).collect(),
        };
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let model = model(name, isa);
            for x in rows(500, 3, 0.1) {
                let (mu, inv_scale) = (values("mu"), values("inv_scale"));
                let u = squash(&x[..N_FEATURES], mu, inv_scale, values("u_mean"));
                let z = reference.logits(&u);
                let p = softmax(&z, 1.3_f32.into());
                let q = model.infer(&x);
                for (p, q) in p.iter().zip([q.down, q.flat, q.up]) {
                    let error = (p - f64::from(q)).abs();
                    assert!(error < 2e-6, "{name} {}: {error:e}", isa.name());
                }
            }
        }
    }
}

#[test]
fn instruction_sets_agree() {
    for name in NAMES {
        let scalar = model(name, Isa::Scalar);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let vector = model(name, isa);
            assert_eq!(vector.isa(), isa);
            for x in rows(300, 5, 0.2) {
                let (p, q) = (scalar.infer(&x), vector.infer(&x));
                let worst = (p.down - q.down).abs().max((p.up - q.up).abs());
                assert!(worst < 4e-6, "{name} {}: {worst:e}", isa.name());
            }
        }
    }
}

#[test]
fn explain_is_the_change_of_the_logits_under_ablation() {
    for name in NAMES {
        let model = model(name, Isa::best());
        for x in rows(20, 8, 0.1) {
            let (z, changes) = (model.logits(&x), model.explain(&x));
            for i in 0..N_FEATURES {
                let mut ablated = x;
                ablated[i] = f32::NAN;
                let after = model.logits(&ablated);
                for c in 0..3 {
                    let expected = after[c] - z[c];
                    let error = (changes[i][c] - expected).abs();
                    assert!(error < 3e-5, "{name} feature {i}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn any_row_gives_probabilities() {
    let extremes = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, -0.0];
    for name in NAMES {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let model = model(name, isa);
            let mut draw = Draw(17);
            for _ in 0..200 {
                let mut x: Row = rows(1, 1, 0.0)[0];
                for v in &mut x[..N_FEATURES] {
                    let pick = (draw.uniform().abs() * 14.0) as usize;
                    *v = extremes.get(pick).copied().unwrap_or(*v);
                }
                let p = model.infer(&x);
                let sum = p.down + p.flat + p.up;
                assert!((sum - 1.0).abs() < 1e-5, "{name} {} {x:?}: {p:?}", isa.name());
                assert!((0.0..=1.0).contains(&model.ood(&x)));
                assert!((0.0..=1.1).contains(&p.entropy()) && (0.0..=1.0).contains(&p.margin()));
            }
        }
    }
}

#[test]
fn wrong_metadata_is_refused_by_name() {
    let good = tensors("logistic", 0, 1);
    for (key, value) in [
        ("format", "qbtc-mps"),
        ("version", "2"),
        ("kind", "forest"),
        ("feature_schema_sha256", "0000"),
        ("feature_names", "[1, 2]"),
        ("feature_names", r#"["one"]"#),
        ("label_horizon_ns", "0"),
        ("label_horizon_ns", "soon"),
        ("label_threshold_bp", "-1"),
        ("label_threshold_bp", "NaN"),
        ("train_start_ns", "1.5"),
        ("train_end_ns", "0"),
        ("val_logloss", "inf"),
        ("val_ece", "1.5"),
        ("baseline_logloss", "[]"),
        ("baseline_logloss", r#"{"prior": "low"}"#),
        ("created", ""),
        ("synthetic", "maybe"),
        ("seed", "-1"),
    ] {
        let mut metadata = metadata("logistic");
        metadata.insert(key.to_owned(), value.to_owned());
        assert_eq!(refused(&good, metadata), key, "{key} = {value}");
    }
    for key in qbtc_core::signal::file::METADATA_KEYS {
        let mut metadata = metadata("logistic");
        metadata.remove(key);
        assert_eq!(refused(&good, metadata), key);
    }
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    for name in NAMES {
        let (kind, size) = kind_of(name);
        let good = tensors(kind, size, 1);
        assert!(load(&file(&good, metadata(kind))).is_ok());
        for field in good.keys() {
            let mut missing = good.clone();
            missing.remove(field);
            let named = refused(&missing, metadata(kind));
            assert_eq!(&named, field, "{name} without {field}");

            let mut longer = good.clone();
            let tensor = longer.get_mut(field).unwrap();
            tensor.0[0] += 1;
            tensor.1.resize(tensor.0.iter().product(), 0.5);
            let named = refused(&longer, metadata(kind));
            // The length of these vectors sets the size that the others are measured by.
            let free = ["l", "b1", "guard_levels", "guard_tail"].contains(&field.as_str());
            assert!(free || &named == field, "{name} with a longer {field}: {named}");

            if field != "perm" {
                let mut infinite = good.clone();
                infinite.get_mut(field).unwrap().1[0] = f32::INFINITY;
                assert_eq!(&refused(&infinite, metadata(kind)), field, "{name}");
            }
        }
        let mut extra = good.clone();
        extra.insert("extra".into(), (vec![1], vec![0.0]));
        assert_eq!(refused(&extra, metadata(kind)), "extra");
    }
}

#[test]
fn impossible_values_are_refused_by_name() {
    let mut cases: Vec<(&str, &str, usize, f32)> = vec![
        ("logistic", "temperature", 0, 0.0),
        ("logistic", "temperature", 0, -1.0),
        ("logistic", "temperature", 0, 1e-45),
        ("logistic", "inv_scale", 3, 0.0),
        ("logistic", "inv_scale", 25, -1.0),
        ("logistic", "u_mean", 7, 1.5),
        ("logistic", "guard_precision", 0, -1.0),
        ("logistic", "guard_precision", 1, 5.0),
        ("logistic", "guard_knots", 0, 9.0),
        ("logistic", "guard_levels", 0, 9.0),
        ("logistic", "guard_tail", 0, 9.0),
        ("logistic", "guard_tail_level", 2, 1.5),
        ("logistic", "weight", 0, 1e37),
        ("mlp32", "w2", 0, 1e37),
        ("mps8", "A", 0, 1e37),
    ];
    for value in [26.0, -1.0, 4.0] {
        cases.push(("mps8", "perm", 0, value));
    }
    for (name, field, at, value) in cases {
        let (kind, size) = kind_of(name);
        let mut bad = tensors(kind, size, 1);
        bad.get_mut(field).unwrap().1[at] = value;
        assert_eq!(refused(&bad, metadata(kind)), field, "{field}[{at}] = {value}");
    }
}

#[test]
fn damaged_files_are_refused() {
    let good = file(&tensors("mps", 8, 1), metadata("mps"));
    for length in (0..good.len()).step_by(997).chain([good.len() - 1]) {
        let Err(error) = load(&good[..length]) else { panic!("{length} bytes were accepted") };
        assert!(matches!(error, Error::Model { .. }), "{error}");
    }
    for header in [u64::MAX, 1 << 40, 300 << 10] {
        let mut hostile = good.clone();
        hostile[..8].copy_from_slice(&header.to_le_bytes());
        let error = load(&hostile).unwrap_err().to_string();
        assert!(error.contains("header"), "{error}");
    }
    let long = [good, vec![0; 5 << 20]].concat();
    let path = std::env::temp_dir().join(format!("qbtc-long-{}.safetensors", std::process::id()));
    std::fs::write(&path, long).unwrap();
    let error = Model::load(&path).unwrap_err().to_string();
    std::fs::remove_file(&path).unwrap();
    assert!(error.contains("longer than"), "{error}");
    assert!(matches!(Model::load(&path), Err(Error::Io { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(load(&bytes).is_err());
    }

    /// A flipped bit is refused, or leaves a model whose answers are still probabilities.
    #[test]
    fn flipped_bits_never_panic(
        which in 0..3_usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 1..4),
        in_header in any::<bool>(),
    ) {
        let (kind, size) = [("mps", 8), ("logistic", 0), ("mlp", 32)][which];
        let mut bytes = file(&tensors(kind, size, 1), metadata(kind));
        let end = if in_header { 2500.min(bytes.len()) } else { bytes.len() };
        for (at, bit) in flips {
            bytes[at.index(end)] ^= 1 << bit;
        }
        if let Ok(model) = load(&bytes) {
            for x in rows(3, 4, 0.1) {
                let p = model.infer(&x);
                prop_assert!((p.down + p.flat + p.up - 1.0).abs() < 1e-4, "{:?}", p);
                prop_assert!(model.explain(&x).iter().flatten().all(|v| v.is_finite()));
                prop_assert!((0.0..=1.0).contains(&model.ood(&x)));
            }
        }
    }

    #[test]
    fn a_batch_has_the_bits_of_its_rows(n in 0..3000_usize, threads in 1..5_usize) {
        let model = model("mps8", Isa::best());
        let rows = rows(n, 9, 0.1);
        let x: Vec<f32> = rows.iter().flat_map(|r| r[..N_FEATURES].to_vec()).collect();
        let mut out = vec![0.0; 3 * n];
        model.infer_batch(&x, &mut out, threads).unwrap();
        for (row, out) in rows.iter().zip(out.chunks(3)) {
            let p = model.infer(row);
            prop_assert_eq!(out, [p.down, p.flat, p.up]);
        }
    }
}

#[test]
fn instruction_sets_are_known_by_name() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        assert_eq!(Isa::parse(isa.name()).unwrap(), isa);
    }
    assert!(matches!(Isa::parse("neon"), Err(Error::Input { field: "isa", .. })));
}
