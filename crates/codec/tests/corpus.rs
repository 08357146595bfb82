//! The fuzzer's kept corpus, replayed: what was found once stays mended.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../../../fuzz/src/lib.rs"]
#[allow(clippy::pedantic)]
mod fuzz;

use std::path::Path;

#[test]
fn nothing_in_the_corpus_breaks_a_decoder() {
    let corpus = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../../fuzz/corpus");
    for (target, run) in fuzz::TARGETS {
        let files: Vec<_> = std::fs::read_dir(corpus.join(target)).unwrap().collect();
        assert!(!files.is_empty(), "{target} has a corpus");
        for file in files {
            let data = std::fs::read(file.unwrap().path()).unwrap();
            run(&data);
            // Near misses, too: cut short, and with one byte changed.
            for at in (0..data.len()).step_by(data.len() / 16 + 1) {
                run(&data[..at]);
                let mut other = data.clone();
                other[at] ^= 0x11;
                run(&other);
            }
        }
    }
}
