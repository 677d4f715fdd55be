#![no_main]

use keyfold_data::{Tokenizer, cache::TokenFile};
use keyfold_train::run::prepare;
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

/// A cache of a text, and the hash of that text in it.
fn valid() -> &'static (Vec<u8>, [u8; 32]) {
    static VALID: OnceLock<(Vec<u8>, [u8; 32])> = OnceLock::new();
    VALID.get_or_init(|| {
        let folder = keyfold_fuzz::folder().join("cache");
        prepare(&mut keyfold_fuzz::run_config(), &folder).expect("a valid text");
        let files = std::fs::read_dir(folder).expect("the cache folder");
        let cache = files
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "bin"));
        let bytes = std::fs::read(cache.expect("a cache")).expect("the file just written");
        let text = bytes[80..112].try_into().expect("32 bytes");
        (bytes, text)
    })
}

fuzz_target!(|data: &[u8]| {
    let (whole, text) = valid();
    let path = keyfold_fuzz::write("tokens.bin", &keyfold_fuzz::file(whole, data));
    let tokenizer = Tokenizer::bytes();
    let Ok(file) = TokenFile::open(&path, &tokenizer, text) else { return };
    let mut ids = Vec::new();
    file.read(0, file.tokens() as usize, &mut ids);
    assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
    for document in 0..file.documents() {
        assert_eq!(file.document_of(file.document_start(document)), document);
    }
});
