//! Embeddings of the real model. `QBTC_TEST_MINILM` names the folder of `all-MiniLM-L6-v2`;
//! without it the test says so and passes. Vectors are held against `NumPy` in
//! `tests/parity/test_embedding.py`.

use std::path::PathBuf;

use qbtc_core::llm::bert::Embedder;

#[test]
fn texts_that_mean_the_same_are_near_each_other() {
    let Some(folder) = std::env::var_os("QBTC_TEST_MINILM") else {
        eprintln!("skipped: QBTC_TEST_MINILM is not set");
        return;
    };
    let embedder = Embedder::load(&PathBuf::from(folder), 2).unwrap();
    let texts = [
        "Bitcoin falls after the central bank raises rates.",
        "The price of BTC drops as interest rates go up.",
        "A recipe for apple pie with cinnamon.",
    ];
    let vectors = embedder.embed(&texts).unwrap().vectors;
    let vectors: Vec<&[f32]> = vectors.chunks_exact(embedder.dim()).collect();
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let (near, far) = (cosine(vectors[0], vectors[1]), cosine(vectors[0], vectors[2]));
    assert!(near > 0.6 && far < 0.2, "{near}, {far}");
    assert_eq!(embedder.tokens_max(), 256);
}
