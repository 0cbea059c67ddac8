//! The trainers: gradients against finite differences, the warm start, determinism, learning.

use qbtc_core::signal::train::{
    Event, Fit, Mlp, Mps, N_INPUTS, Network, Real, Rows, Schedule, WarmStart, cross_entropy,
    fit_seeds, train_logistic,
};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

const SCHEDULE: Schedule = Schedule {
    epochs: 4,
    batch: 64,
    learning_rate: 3e-3,
    decay: 0.1,
    ema: 0.98,
    patience: 3,
    clip: 1.0,
    warm_up_steps: 10,
};

fn uniform(rng: &mut Pcg64Mcg) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Rows whose class depends on u0 (linear) and u1·u2 (an interaction no linear model sees).
fn market(n: usize, seed: u64) -> (Vec<f64>, Vec<u8>) {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let u: Vec<f64> = (0..n * N_INPUTS).map(|_| 1.8 * uniform(&mut rng) - 0.9).collect();
    let class = |row: &[f64], noise: f64| match row[0] + 4.0 * row[1] * row[2] + noise {
        s if s < -0.5 => 0,
        s if s > 0.5 => 2,
        _ => 1,
    };
    let y = u.chunks(N_INPUTS).map(|row| class(row, uniform(&mut rng) - 0.5)).collect();
    (u, y)
}

fn narrow(u: &[f64]) -> Vec<f32> {
    u.iter().map(|&u| u as f32).collect()
}

fn perm() -> Vec<i32> {
    (0..26).map(|k| (k * 7 + 3) % 26).collect()
}

fn jitter(params: &mut [f64], size: f64) {
    let mut rng = Pcg64Mcg::seed_from_u64(9);
    for p in params {
        *p += size * (uniform(&mut rng) - 0.5);
    }
}

fn mps_start<T: Real, const CHI: usize>(weight: &[f64], bias: &[f64]) -> (Mps<T, CHI>, Vec<T>) {
    let warm = WarmStart { weight, bias, perm: &perm(), noise: 0.05 };
    let start = Mps::warm_start(&warm, &mut Pcg64Mcg::seed_from_u64(4)).unwrap();
    (start.network, start.params)
}

/// Largest difference to central differences, relative to the largest entry.
fn gradient_error(network: &mut impl Network<f64>, params: &[f64]) -> f64 {
    let (u, y) = market(3, 5);
    let rows = Rows::new(&u, &y).unwrap();
    let mut gradient = vec![0.0; network.n_params()];
    network.prepare(params);
    for (u, class) in rows.iter() {
        let z = network.forward(params, u);
        let sum: f64 = z.iter().map(|z| z.exp()).sum();
        let dz = [0, 1, 2].map(|c| (z[c].exp() / sum - f64::from(c == class)) / 3.0);
        network.backward(u, dz, &mut gradient);
    }
    let largest = gradient.iter().fold(0.0_f64, |max, g| max.max(g.abs()));
    let mut worst = 0.0_f64;
    for (i, g) in gradient.iter().enumerate() {
        let mut at = |step: f64| {
            let mut moved = params.to_vec();
            moved[i] += step;
            cross_entropy(network, &moved, rows)
        };
        let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        worst = worst.max((difference - g).abs() / largest);
    }
    worst
}

fn mps_gradient_error<const CHI: usize>() -> f64 {
    let weight: Vec<f64> = (0..78).map(|i| (f64::from(i) * 0.7).sin()).collect();
    let (mut network, mut params) = mps_start::<f64, CHI>(&weight, &[0.1, 0.0, -0.1]);
    jitter(&mut params, 0.1);
    gradient_error(&mut network, &params)
}

#[test]
fn mps_gradients_match_finite_differences() {
    assert!(mps_gradient_error::<4>() < 1e-6);
    assert!(mps_gradient_error::<8>() < 1e-6);
    assert!(mps_gradient_error::<16>() < 1e-6);
}

#[test]
fn mlp_gradients_match_finite_differences() {
    let mut start = Mlp::random_start(11, &mut Pcg64Mcg::seed_from_u64(3)).unwrap();
    jitter(&mut start.params, 0.2);
    assert!(gradient_error(&mut start.network, &start.params) < 1e-6);
}

#[test]
fn the_warm_start_is_the_logistic_model() {
    let (u, y) = market(200, 2);
    let rows = Rows::new(&u, &y).unwrap();
    let logistic = train_logistic(rows, 1e-3, || true).unwrap().unwrap();
    let (mut wide, wide_params) = mps_start::<f64, 16>(&logistic.weight, &logistic.bias);
    let (mut slim, slim_params) = mps_start::<f32, 8>(&logistic.weight, &logistic.bias);
    wide.prepare(&wide_params);
    slim.prepare(&slim_params);
    for (u, _) in rows.iter() {
        let z64 = wide.forward(&wide_params, u);
        let z32 = slim.forward(&slim_params, &u.map(|u| u as f32));
        for c in 0..3 {
            let linear: f64 = (0..N_INPUTS).map(|i| u[i] * logistic.weight[i * 3 + c]).sum();
            assert!((z64[c] - logistic.bias[c] - linear).abs() < 1e-12);
            assert!((f64::from(z32[c]) - logistic.bias[c] - linear).abs() < 1e-6);
        }
    }
}

#[test]
fn logistic_reaches_the_stationary_point() {
    let (u, y) = market(500, 3);
    let rows = Rows::new(&u, &y).unwrap();
    let fit = train_logistic(rows, 0.01, || true).unwrap().unwrap();
    let row_loss = |u: &[f64; N_INPUTS], class: usize, weight: &[f64]| {
        let linear = |c: usize| (0..26).map(|i| u[i] * weight[i * 3 + c]).sum::<f64>();
        let z = [0, 1, 2].map(|c| fit.bias[c] + linear(c));
        z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[class]
    };
    let objective = |weight: &[f64]| {
        let total: f64 = rows.iter().map(|(u, class)| row_loss(u, class, weight)).sum();
        total / 500.0 + 0.005 * weight.iter().map(|w| w * w).sum::<f64>()
    };
    for i in 0..78 {
        let at = |step: f64| {
            let mut moved = fit.weight.clone();
            moved[i] += step;
            objective(&moved)
        };
        assert!(((at(1e-5) - at(-1e-5)) / 2e-5).abs() < 1e-8, "weight {i} is not stationary");
    }
    // The biases carry no penalty: the mean probability of a class is its share of the rows.
    for c in 0..3 {
        let share = y.iter().filter(|&&class| usize::from(class) == c).count() as f64 / 500.0;
        let said = |u: &[f64; N_INPUTS]| {
            let linear = |c: usize| (0..26).map(|i| u[i] * fit.weight[i * 3 + c]).sum::<f64>();
            let e = [0, 1, 2].map(|c| (fit.bias[c] + linear(c)).exp());
            e[c] / e.iter().sum::<f64>()
        };
        let mean = rows.iter().map(|(u, _)| said(u)).sum::<f64>() / 500.0;
        assert!((mean - share).abs() < 1e-6, "class {c}: {mean}, not {share}");
    }
    assert!(fit.steps <= 10);
}

#[test]
fn a_fit_is_the_same_with_any_number_of_threads() {
    let (u, y) = market(300, 6);
    let u = narrow(&u);
    let rows = Rows::new(&u, &y).unwrap();
    let warm = WarmStart { weight: &[0.1; 78], bias: &[0.0; 3], perm: &perm(), noise: 0.05 };
    let run = |threads| {
        let start = |rng: &mut Pcg64Mcg| Mps::<f32, 8>::warm_start(&warm, rng);
        fit_seeds(start, rows, rows, &SCHEDULE, &[1, 2, 3], threads, |_| true).unwrap().unwrap()
    };
    let bits = |fits: Vec<Fit<f32>>| -> Vec<Vec<u32>> {
        fits.iter().map(|fit| fit.params.iter().map(|p| p.to_bits()).collect()).collect()
    };
    let (one, two) = (bits(run(1)), bits(run(2)));
    assert_eq!(one, two);
    assert_ne!(one[0], one[1], "seeds differ");
}

#[test]
fn networks_learn_an_interaction_that_logistic_regression_cannot() {
    let (u, y) = market(6000, 7);
    let (later_u, later_y) = market(2000, 8);
    let logistic = train_logistic(Rows::new(&u, &y).unwrap(), 1e-3, || true).unwrap().unwrap();
    let (u, later_u) = (narrow(&u), narrow(&later_u));
    let train = Rows::new(&u, &y).unwrap();
    let later = Rows::new(&later_u, &later_y).unwrap();
    let schedule = Schedule { epochs: 20, ..SCHEDULE };
    let best = |fits: &[Fit<f32>]| fits[0].curve[fits[0].best_epoch].validation;

    let (weight, bias) = (&logistic.weight[..], &logistic.bias[..]);
    let warm = WarmStart { weight, bias, perm: &perm(), noise: 0.05 };
    let start = |rng: &mut Pcg64Mcg| Mps::<f32, 8>::warm_start(&warm, rng);
    let mps = fit_seeds(start, train, later, &schedule, &[1], 1, |_| true).unwrap().unwrap();
    let linear = mps[0].curve[0].validation;
    assert!(best(&mps) < linear - 0.05, "{} against logistic {linear}", best(&mps));

    let start = |rng: &mut Pcg64Mcg| Mlp::<f32>::random_start(16, rng);
    let mlp = fit_seeds(start, train, later, &schedule, &[1], 1, |_| true).unwrap().unwrap();
    assert!(best(&mlp) < linear - 0.05, "{} against logistic {linear}", best(&mlp));
}

#[test]
fn weights_are_averaged_and_the_best_epoch_is_kept_for_as_long_as_patience_lasts() {
    let (u, y) = market(640, 6);
    let rows = Rows::new(&u, &y).unwrap();
    // The same rows with the classes turned: what is learnt on one is wrong on the other.
    let turned: Vec<u8> = y.iter().map(|&class| (class + 1) % 3).collect();
    let later = Rows::new(&u, &turned).unwrap();
    let warm = WarmStart { weight: &[0.0; 78], bias: &[0.0; 3], perm: &perm(), noise: 0.05 };
    let start = |rng: &mut Pcg64Mcg| Mps::<f64, 8>::warm_start(&warm, rng);
    let run = |validation, schedule: Schedule| {
        fit_seeds(start, rows, validation, &schedule, &[1], 1, |_| true).unwrap().unwrap().remove(0)
    };
    let learnt = |fit: &Fit<f64>| fit.curve[0].validation - fit.curve[1].validation;

    let one = Schedule { epochs: 1, warm_up_steps: 1, ..SCHEDULE };
    let last = run(rows, Schedule { ema: 0.0, ..one });
    let average = run(rows, Schedule { ema: 0.98, ..one });
    assert_eq!(last.curve[1].train.to_bits(), average.curve[1].train.to_bits());
    assert!(learnt(&last) > 0.0 && learnt(&average) > 0.0);
    assert_ne!(last.params, average.params, "an average lags behind");

    let wrong = run(later, Schedule { epochs: 30, patience: 3, ..SCHEDULE });
    assert_eq!((wrong.best_epoch, wrong.curve.len()), (0, 1 + 3), "the start, and three tries");
    let (_, begin) = mps_start::<f64, 8>(&[0.0; 78], &[0.0; 3]);
    assert_eq!(wrong.params.len(), begin.len());
    assert!(wrong.curve[1..].iter().all(|loss| loss.validation > wrong.curve[0].validation));
}

#[test]
fn an_observer_can_stop_every_fit() {
    let (u, y) = market(300, 6);
    let rows = Rows::new(&u, &y).unwrap();
    let start = |rng: &mut Pcg64Mcg| Mlp::<f64>::random_start(8, rng);
    let schedule = Schedule { epochs: 1_000_000, patience: 1_000_000, ..SCHEDULE };
    let mut heard = 0;
    let stopped = fit_seeds(start, rows, rows, &schedule, &[1, 2, 3], 2, |event| {
        heard += usize::from(matches!(event, Event::Epoch { .. }));
        heard < 3
    });
    assert!(stopped.unwrap().is_none());
    assert!(train_logistic(rows, 1.0, || false).unwrap().is_none());
}

#[test]
fn impossible_input_is_refused_by_name() {
    fn says<T>(result: Result<T, qbtc_core::Error>, word: &str) {
        let text = result.err().expect(word).to_string();
        assert!(text.contains(word), "{text}");
    }
    let (mut u, y) = market(10, 1);
    let start = |rng: &mut Pcg64Mcg| Mlp::<f64>::random_start(8, rng);
    let rows = Rows::new(&u, &y).unwrap();
    for (schedule, word) in [
        (Schedule { epochs: 0, ..SCHEDULE }, "epochs"),
        (Schedule { batch: 0, ..SCHEDULE }, "batch_size"),
        (Schedule { learning_rate: f64::NAN, ..SCHEDULE }, "learning_rate"),
        (Schedule { decay: -1.0, ..SCHEDULE }, "decay"),
        (Schedule { ema: 1.0, ..SCHEDULE }, "ema"),
        (Schedule { patience: 0, ..SCHEDULE }, "patience"),
    ] {
        says(fit_seeds(start, rows, rows, &schedule, &[1], 1, |_| true), word);
    }
    let wide = |rng: &mut Pcg64Mcg| Mlp::<f64>::random_start(0, rng);
    says(fit_seeds(wide, rows, rows, &SCHEDULE, &[1], 1, |_| true), "hidden");
    says(train_logistic(rows, -1.0, || true), "l2");
    says(Rows::new(&u, &y[1..]), "10 rows");
    says(Rows::<f64>::new(&[], &[]), "no rows");
    says(Rows::new(&u, &[3; 10]), "class 3");
    says(Mps::<f64, 8>::new(&[0; 26]), "perm");
    u[30] = f64::NAN;
    says(Rows::new(&u, &y), "row 1");
}
