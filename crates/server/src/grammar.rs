//! Texts that follow a grammar: JSON, or JSON of a schema, token by token.

use crate::error::ApiError;
use keyfold_data::Tokenizer;
use keyfold_engine::Constraint;
use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    earley::SlicedBiasComputer,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::Value;
use std::{collections::HashSet, sync::Arc};

/// Makes grammars over a model's tokens.
pub(crate) struct Grammars {
    factory: ParserFactory,
}

impl Grammars {
    /// `vocab_size`: rows of the model's logits; `ends`: tokens that end a text.
    pub(crate) fn new(tokenizer: &Tokenizer, vocab_size: usize, ends: &[u32]) -> Result<Self, String> {
        let ends: Vec<u32> = ends.iter().copied().filter(|end| (*end as usize) < vocab_size).collect();
        let Some(first) = ends.first() else { return Err("no token ends a text".to_owned()) };
        let mut seen = HashSet::new();
        // Special tokens stand for no text. Of tokens with equal bytes one is enough.
        let words: Vec<Vec<u8>> = (0..vocab_size as u32)
            .map(|id| tokenizer.token_bytes(id).unwrap_or_default())
            .map(|bytes| if bytes.is_empty() || seen.insert(bytes) { bytes.to_vec() } else { Vec::new() })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, *first), &words).with_eos_tokens(&ends);
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let capabilities = InferenceCapabilities::default();
        let mut factory = ParserFactory::new(&tokens, capabilities, &SlicedBiasComputer::json_slices())
            .map_err(|error| error.to_string())?;
        factory.quiet();
        Ok(Self { factory })
    }

    /// Texts that are JSON of a schema.
    ///
    /// # Errors
    /// When the schema is wrong, too large, or says what cannot be followed.
    pub(crate) fn schema(&self, param: &str, schema: Value) -> Result<Follow, ApiError> {
        let matcher = Matcher::new(self.factory.create_parser(TopLevelGrammar::from_json_schema(schema)));
        match matcher.get_error() {
            None => Ok(Follow { matcher }),
            // The first line tells; what follows is the grammar itself.
            Some(error) => Err(ApiError::invalid(param, error.lines().next().unwrap_or_default())),
        }
    }
}

/// A place in a text that follows a grammar.
#[derive(Clone)]
pub(crate) struct Follow {
    matcher: Matcher,
}

impl Constraint for Follow {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        let known = logits.len().min(allowed.len());
        logits[known..].fill(f32::NEG_INFINITY);
        allowed.iter_unset_entries(|token| {
            if let Some(logit) = logits.get_mut(token) {
                *logit = f32::NEG_INFINITY;
            }
        });
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        self.matcher.consume_token(token).map_err(|error| error.to_string())?;
        Ok(self.matcher.is_stopped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn follow(schema: Value) -> Follow {
        let grammars = Grammars::new(&Tokenizer::bytes(), 260, &[256]).expect("grammars");
        grammars.schema("schema", schema).expect("a schema")
    }

    fn allowed(follow: &mut Follow) -> Vec<u32> {
        let mut logits = vec![0.0; 262];
        follow.mask(&mut logits).expect("a mask");
        (0..262).filter(|token| logits[*token as usize] == 0.0).collect()
    }

    #[test]
    fn only_what_the_schema_allows_comes() {
        let schema = json!({
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": false,
        });
        let mut follow = follow(schema);
        assert_eq!(allowed(&mut follow), [u32::from(b'{')]);
        let text = br#"{"n":12}"#;
        for (at, byte) in text.iter().enumerate() {
            let token = u32::from(*byte);
            assert!(allowed(&mut follow).contains(&token), "{}", *byte as char);
            let done = follow.accept(token).expect("allowed");
            assert_eq!(done, at + 1 == text.len());
        }
    }

    #[test]
    fn what_may_end_ends_with_an_end_token() {
        let mut follow = follow(json!({"type": "integer"}));
        follow.accept(u32::from(b'7')).expect("a digit");
        assert!(allowed(&mut follow).contains(&256));
        assert!(follow.accept(256).expect("an end"));
    }

    #[test]
    fn what_is_not_allowed_is_an_error() {
        assert!(follow(json!({"type": "object"})).accept(u32::from(b'x')).is_err());
        let grammars = Grammars::new(&Tokenizer::bytes(), 257, &[256]).expect("grammars");
        for bad in [json!({"type": "nothing"}), json!(5), json!({"$ref": "https://example.org/schema"})] {
            let error = grammars.schema("schema", bad.clone()).err();
            let error = error.unwrap_or_else(|| panic!("{bad} was accepted"));
            assert!(error.message.starts_with("`schema`: "), "{error}");
        }
    }
}
