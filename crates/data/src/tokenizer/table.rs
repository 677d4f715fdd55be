//! The bytes of every token, and the byte alphabet of byte-level BPE.

/// What an unknown id decodes to.
pub(super) const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// Token id to bytes, in two flat arrays.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct ByteTable {
    data: Vec<u8>,
    ends: Vec<usize>,
}

impl ByteTable {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
        self.ends.push(self.data.len());
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.data[start..end])
    }
}

/// The printable character that stands for a byte in byte-level BPE files: printable Latin-1 bytes
/// stand for themselves, the others for U+0100 onwards in order (the GPT-2 tokenizer's table).
pub(super) fn byte_to_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Inverse of [`byte_to_char`], as a table.
pub(super) struct CharTable(Vec<Option<u8>>);

impl CharTable {
    pub(super) fn new() -> Self {
        let mut table = vec![None; 0x180];
        for byte in 0..=255u8 {
            if let Some(slot) = table.get_mut(byte_to_char(byte) as usize) {
                *slot = Some(byte);
            }
        }
        Self(table)
    }

    /// The bytes of a token as written in a byte-level BPE file, or the first character that is not of
    /// that alphabet.
    pub(super) fn bytes(&self, token: &str) -> Result<Vec<u8>, char> {
        token.chars().map(|c| self.0.get(c as usize).copied().flatten().ok_or(c)).collect()
    }
}
