//! Decoding one token at a time without ever showing half a character.

use super::{Tokenizer, table::REPLACEMENT};

/// Turns a stream of token ids into text. The pieces joined, with [`StreamDecoder::finish`]'s, are
/// exactly [`Tokenizer::decode`] of all ids; a space that encoding put before a text stays.
#[derive(Debug, Default, Clone)]
pub struct StreamDecoder {
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder with nothing pending.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one token and gives the text that is complete by now, which may be none.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.pending.extend_from_slice(tokenizer.token_bytes(id).unwrap_or(REPLACEMENT));
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            let broken = chunk.invalid();
            let after = done + chunk.valid().len() + broken.len();
            text.push_str(chunk.valid());
            // Broken bytes at the very end may be the beginning of a character; those that cannot be
            // are reported at once, as the lossy conversion would.
            let unfinished = after == self.pending.len()
                && std::str::from_utf8(broken).is_err_and(|e| e.error_len().is_none());
            if unfinished {
                done += chunk.valid().len();
                break;
            }
            if !broken.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            done = after;
        }
        self.pending.drain(..done);
        text
    }

    /// Ends the stream: what is left of an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}
