#![no_main]

use keyfold_data::{StreamDecoder, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = keyfold_fuzz::write("tokenizer.json", data);
    let Ok(tokenizer) = keyfold_fuzz::catching(|| Tokenizer::load(&path)) else { return };
    assert!((tokenizer.eos() as usize) < tokenizer.vocab_size());
    let text = "the cat, 42 times: \u{e9}\u{1f408}<|endoftext|>";
    let encoded = keyfold_fuzz::catching(|| {
        [tokenizer.encode(text), tokenizer.encode_sequence(text), tokenizer.encode_with_specials(text)]
    });
    for ids in encoded.into_iter().flatten() {
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
        let mut stream = StreamDecoder::new();
        let streamed: String = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
        // A space that encoding put before the text is part of the stream.
        let whole = String::from_utf8_lossy(&tokenizer.decode_bytes(&ids)).into_owned();
        assert_eq!(streamed + &stream.finish(), whole);
        assert!(whole.ends_with(&tokenizer.decode(&ids)));
    }
});
