#![no_main]

use keyfold_data::{StreamDecoder, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = keyfold_fuzz::write("tokenizer.json", data);
    let Ok(tokenizer) = Tokenizer::load(&path) else { return };
    assert!((tokenizer.eos() as usize) < tokenizer.vocab_size());
    if let Ok(ids) = tokenizer.encode("the cat, 42 times: \u{e9}\u{1f408}") {
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
        let mut stream = StreamDecoder::new();
        let streamed: String = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
        assert_eq!(streamed + &stream.finish(), tokenizer.decode(&ids));
    }
});
