//! Sentence templates: text with `{field}` for what is told and `[field]` for what must be recalled.
//!
//! A field is a person's letter (`a` the one the sentence is about, `b` the next in the circle, `c` the
//! one after) with an attribute: `a` the name, `a.role`, `a.adj`, `a.obj`, and the two words of a place's name, `a.land`
//! and `a.place`. `an a.adj` puts the right article before it.
//! The author of a template answers for its recalls being determined by the words before them.

use super::{Answer, AnswerKind};

/// One of the cast.
#[derive(Debug, Clone)]
pub(super) struct Person {
    pub(super) name: &'static str,
    pub(super) role: &'static str,
    pub(super) adjective: &'static str,
    pub(super) object: &'static str,
    pub(super) land: &'static str,
    pub(super) place: &'static str,
}

/// A story being written.
pub(super) struct Writer<'a> {
    pub(super) cast: &'a [Person],
    pub(super) text: String,
    pub(super) answers: Vec<Answer>,
}

impl Writer<'_> {
    /// Renders a template about person `who` as the next sentence.
    pub(super) fn sentence(&mut self, template: &str, who: usize) {
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push(' ');
        }
        let mut rest = template;
        while let Some(open) = rest.find(['{', '[']) {
            let recalled = rest[open..].starts_with('[');
            self.text.push_str(&rest[..open]);
            let Some(len) = rest[open..].find(if recalled { ']' } else { '}' }) else { break };
            self.field(&rest[open + 1..open + len], who, recalled);
            rest = &rest[open + len + 1..];
        }
        self.text.push_str(rest);
    }

    fn field(&mut self, field: &str, who: usize, recalled: bool) {
        let (article, field) = match field.split_once(' ') {
            Some((article, field)) => (Some(article), field),
            None => (None, field),
        };
        let (letter, attribute) = field.split_once('.').unwrap_or((field, "name"));
        let offset = letter.bytes().next().map_or(0, |l| usize::from(l.saturating_sub(b'a')));
        let person = &self.cast[(who + offset) % self.cast.len()];
        let (word, kind) = match attribute {
            "role" => (person.role, AnswerKind::Role),
            "adj" => (person.adjective, AnswerKind::Adjective),
            "obj" => (person.object, AnswerKind::Object),
            "land" => (person.land, AnswerKind::Place),
            "place" => (person.place, AnswerKind::Place),
            _ => (person.name, AnswerKind::Name),
        };
        if let Some(article) = article {
            self.text.push_str(if word.starts_with(['a', 'e', 'i', 'o', 'u']) {
                article
            } else {
                &article[..1]
            });
            self.text.push(' ');
        }
        let start = self.text.len();
        self.text.push_str(word);
        if recalled {
            let distance = last_mention(&self.text[..start], word).map_or(start, |at| start - at);
            let candidates = self.cast.len();
            self.answers.push(Answer { start, end: self.text.len(), kind, distance, candidates });
        }
    }
}

/// Byte offset of the last whole-word occurrence.
pub(super) fn last_mention(text: &str, word: &str) -> Option<usize> {
    let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.rmatch_indices(word).map(|(at, _)| at).find(|&at| {
        !inside(text[..at].chars().next_back()) && !inside(text[at + word.len()..].chars().next())
    })
}
