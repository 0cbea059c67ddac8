//! A step allocates nothing once the pool of pages is known. Alone in its binary, because the
//! allocator is global.

mod counting;

use counting::allocations;
use qbtc_core::llm::forward::{Forward, LogitsFor, Segment};
use qbtc_core::llm::gguf::writer::TinyModel;
use qbtc_core::llm::graph::{Graph, LoadOptions};
use qbtc_core::llm::kv::{KvPages, PageId};

#[test]
fn steps_allocate_nothing_whatever_is_in_them() {
    let file = TinyModel { context: 1024, ..TinyModel::default() }.gguf().unwrap();
    for threads in [1, 2] {
        let options = LoadOptions { threads, step_tokens_max: 256, ..LoadOptions::default() };
        let mut graph = Graph::load(&file, &options).unwrap();
        let mut kv = KvPages::new(graph.shape().kv, 16 << 20).unwrap();
        let mut pages = || -> Vec<PageId> { (0..32).map(|_| kv.allocate().unwrap()).collect() };
        let (first, second) = (pages(), pages());
        let tokens = vec![7; 256];
        let prompt =
            Segment { tokens: &tokens[..200], position: 0, pages: &first, logits: LogitsFor::Last };
        graph.step(&mut kv, &[prompt]).unwrap();
        let before = allocations();
        let mut sum = 0.0;
        for position in (200..800).step_by(50) {
            let tokens = &tokens[..50];
            let next = Segment { tokens, position, logits: LogitsFor::Nothing, ..prompt };
            let beside = Segment { position: position - 200, pages: &second, ..prompt };
            for segments in [&[next][..], &[next, beside]] {
                sum += graph.step(&mut kv, segments).unwrap().iter().sum::<f32>();
            }
        }
        for position in 800..900 {
            let one = Segment { tokens: &[3], position, ..prompt };
            let draft = Segment { tokens: &[1, 2, 3, 4], logits: LogitsFor::All, ..one };
            sum += graph.step(&mut kv, &[draft]).unwrap()[0];
            sum += graph.step(&mut kv, &[one]).unwrap()[0];
        }
        assert!(sum.is_finite());
        assert_eq!(allocations() - before, 0, "{threads} threads");
    }
}
