//! How a tokenizer file writes bytes: in the alphabet of byte-level BPE, or as SentencePiece does, as characters with a
//! mark for spaces and a token for each byte that no other token has.

use serde_json::Value;
use tokenizers::Tokenizer as Library;

use super::table::CharTable;

/// What SentencePiece writes for a space.
const SPACE_MARK: char = '\u{2581}';

/// The way from a token's text in the file to the bytes that it stands for.
pub(super) enum Alphabet {
    ByteLevel(CharTable),
    Characters {
        /// Whether a space is put before every text.
        leading_space: bool,
    },
}

impl Alphabet {
    /// The alphabet that a tokenizer's decoder undoes.
    pub(super) fn of(library: &Library) -> Result<Self, String> {
        let json = |part: serde_json::Result<Value>| part.map_err(|e| e.to_string());
        let decoder = json(serde_json::to_value(library.get_decoder()))?;
        let splitter = json(serde_json::to_value(library.get_pre_tokenizer()))?;
        let (decoders, splitters) = (steps(&decoder, "decoders"), steps(&splitter, "pretokenizers"));
        let named = |steps: &[&Value], name: &str| steps.iter().any(|step| step["type"] == name);
        if named(&decoders, "ByteLevel") || named(&splitters, "ByteLevel") {
            return Ok(Self::ByteLevel(CharTable::new()));
        }
        if !named(&decoders, "ByteFallback") {
            let found = if decoder.is_null() { "none".to_owned() } else { decoder.to_string() };
            return Err(format!("expected a byte-level decoder or one with byte fallback, found {found}"));
        }
        let strips = |step: &&Value| step["type"] == "Strip" && step["content"] == " " && step["start"] != 0;
        let marks = |step: &&Value| step["type"] == "Metaspace" && step["prepend_scheme"] != "never";
        Ok(Self::Characters { leading_space: decoders.iter().any(|step| strips(step) || marks(step)) })
    }

    pub(super) fn leading_space(&self) -> bool {
        matches!(self, Self::Characters { leading_space: true })
    }

    /// The bytes of a token as written in the file.
    pub(super) fn bytes(&self, token: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::ByteLevel(chars) => chars.bytes(token).map_err(|c| {
                format!(
                    "expected tokens in the byte-level alphabet, found \"{token}\" with the character {c:?}"
                )
            }),
            Self::Characters { .. } => {
                Ok(byte(token).map_or_else(|| token.replace(SPACE_MARK, " ").into_bytes(), |byte| vec![byte]))
            }
        }
    }
}

/// The parts of a sequence, or the one part that there is.
fn steps<'a>(part: &'a Value, list: &str) -> Vec<&'a Value> {
    match part[list].as_array() {
        Some(parts) => parts.iter().flat_map(|part| steps(part, list)).collect(),
        None => vec![part],
    }
}

/// The byte that a token such as `<0x0A>` is for.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}
