//! Guessing the next tokens by looking up what followed the last ones before (prompt look-up decoding, a form of
//! speculative decoding, arXiv 2211.17192, without a second model).

/// How tokens are guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Tokens guessed at a time.
    pub tokens: usize,
    /// Most tokens at the end of the text that are looked for.
    pub longest: usize,
    /// Fewest of them.
    pub shortest: usize,
}

impl Default for Lookup {
    fn default() -> Self {
        Self { tokens: 8, longest: 4, shortest: 2 }
    }
}

impl Lookup {
    /// The tokens, at most `most`, that followed the latest earlier place where the end of `text` stands; the longest end
    /// that stands anywhere counts.
    pub fn guess<'a>(&self, text: &'a [u32], most: usize) -> &'a [u32] {
        let most = most.min(self.tokens);
        for length in (self.shortest..=self.longest.min(text.len().saturating_sub(1))).rev() {
            let (before, end) = (&text[..text.len() - 1], &text[text.len() - length..]);
            if let Some(at) = before.windows(length).rposition(|window| window == end) {
                let from = at + length;
                return &text[from..text.len().min(from + most)];
            }
        }
        &[]
    }
}

#[cfg(test)]
mod tests;
