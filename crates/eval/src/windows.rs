//! Which tokens of a text are scored, and what each is predicted from.

use std::ops::Range;

/// How a text that is longer than a model's context is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window, the prefix included.
    pub context: usize,
    /// Tokens between the beginnings of windows. Without it windows follow one another, and of each the second half is
    /// scored, so that every scored token has at least half a window before it. With it every token of the text but the first
    /// is scored once, by the first window that holds it; all but those of the first window have at least
    /// `context - stride` tokens before them.
    pub stride: Option<usize>,
    /// Tokens that stand before the text in every window, such as a begin-of-sequence token; they are never scored.
    pub prefix: usize,
}

/// A stretch of the text that a model sees at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    begin: usize,
    end: usize,
    from: usize,
}

impl Window {
    /// The tokens of the text in it.
    pub fn tokens(&self) -> Range<usize> {
        self.begin..self.end
    }

    /// Those that it scores.
    pub fn scored(&self) -> Range<usize> {
        self.from..self.end
    }
}

/// Windows that score nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowsError {
    /// The context leaves no room for tokens and something before them.
    #[error(
        "a context of {context} with {prefix} tokens before the text: expected room for at least {needed} more"
    )]
    Context {
        /// Tokens of a window.
        context: usize,
        /// Tokens before the text.
        prefix: usize,
        /// Tokens of the text that a window needs.
        needed: usize,
    },
    /// The stride leaves tokens out or does not move.
    #[error("a stride of {stride}: expected 1 to {largest}")]
    Stride {
        /// What was asked for.
        stride: usize,
        /// Tokens of the text that a window scores at most.
        largest: usize,
    },
    /// The text is too short to score any token.
    #[error("a text of {tokens} tokens: expected at least {needed}")]
    Short {
        /// Its tokens.
        tokens: usize,
        /// Tokens that one window needs.
        needed: usize,
    },
}

impl Windows {
    /// The windows over a text of `tokens` tokens.
    ///
    /// # Errors
    /// When nothing can be scored so.
    pub fn over(&self, tokens: usize) -> Result<Vec<Window>, WindowsError> {
        let room = self.context.saturating_sub(self.prefix);
        let first = usize::from(self.prefix == 0);
        let windows: Vec<Window> = match self.stride {
            None => {
                self.check_room(room, 2)?;
                let half = self.context / 2;
                // The half is counted with the prefix: what is scored has half a window before it.
                let from = half.saturating_sub(self.prefix).max(first);
                let starts = (0..tokens).step_by(room).take_while(|begin| tokens - begin >= room);
                starts.map(|begin| Window { begin, end: begin + room, from: begin + from }).collect()
            }
            Some(stride) => {
                self.check_room(room, 1 + first)?;
                let largest = room - first;
                if stride == 0 || stride > largest {
                    return Err(WindowsError::Stride { stride, largest });
                }
                let (mut windows, mut done) = (Vec::new(), first);
                let mut begin = 0;
                while done < tokens {
                    let end = (begin + room).min(tokens);
                    windows.push(Window { begin, end, from: done });
                    (begin, done) = (begin + stride, end);
                }
                windows
            }
        };
        if windows.is_empty() {
            let needed = if self.stride.is_none() { room } else { 1 + first };
            return Err(WindowsError::Short { tokens, needed });
        }
        Ok(windows)
    }

    fn check_room(&self, room: usize, needed: usize) -> Result<(), WindowsError> {
        let &Self { context, prefix, .. } = self;
        if room < needed { Err(WindowsError::Context { context, prefix, needed }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_and_strides_are_where_they_should_be() {
        let spans = |windows: Windows, tokens| -> Vec<(Range<usize>, Range<usize>)> {
            let windows = windows.over(tokens).unwrap();
            windows.iter().map(|window| (window.tokens(), window.scored())).collect()
        };
        let halves = Windows { context: 4, stride: None, prefix: 0 };
        assert_eq!(spans(halves, 9), [(0..4, 2..4), (4..8, 6..8)]);
        assert_eq!(spans(Windows { prefix: 1, ..halves }, 9), [(0..3, 1..3), (3..6, 4..6), (6..9, 7..9)]);
        let strided = Windows { context: 4, stride: Some(2), prefix: 0 };
        assert_eq!(spans(strided, 7), [(0..4, 1..4), (2..6, 4..6), (4..7, 6..7)]);
        assert_eq!(spans(strided, 3), [(0..3, 1..3)]);
        assert_eq!(spans(Windows { prefix: 1, ..strided }, 3), [(0..3, 0..3)]);
    }

    #[test]
    fn windows_that_score_nothing_are_refused() {
        let refused = |context, stride, prefix, tokens| {
            Windows { context, stride, prefix }.over(tokens).unwrap_err().to_string()
        };
        assert!(refused(1, None, 0, 10).contains("a context of 1"));
        assert!(refused(5, None, 5, 10).contains("with 5 tokens before"));
        assert!(refused(8, None, 0, 7).contains("a text of 7 tokens: expected at least 8"));
        assert!(refused(8, Some(0), 0, 10).contains("a stride of 0: expected 1 to 7"));
        assert!(refused(8, Some(8), 0, 10).contains("a stride of 8"));
        assert!(refused(8, Some(2), 0, 1).contains("expected at least 2"));
        assert!(refused(0, Some(1), 0, 1).contains("a context of 0"));
    }

    proptest! {
        #[test]
        fn every_scored_token_has_the_promised_context(
            context in 0usize..40, stride in prop::option::of(0usize..40), prefix in 0usize..3, tokens in 0usize..200,
        ) {
            let Ok(windows) = (Windows { context, stride, prefix }).over(tokens) else { return Ok(()) };
            let mut next = usize::from(prefix == 0);
            for (index, window) in windows.iter().enumerate() {
                let (all, scored) = (window.tokens(), window.scored());
                prop_assert!(all.end <= tokens && all.len() + prefix <= context);
                prop_assert!(!scored.is_empty() && scored.start >= all.start && scored.end == all.end);
                prop_assert!(scored.start - all.start + prefix >= 1);
                match stride {
                    None => prop_assert!(scored.start - all.start + prefix >= context / 2),
                    Some(stride) => {
                        prop_assert_eq!(scored.start, next);
                        let before = scored.start - all.start + prefix;
                        prop_assert!(index == 0 || before >= context - stride);
                    }
                }
                next = scored.end;
            }
            prop_assert!(stride.is_none() || next == tokens);
        }
    }
}
