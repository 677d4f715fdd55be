//! The pages of a cache: who uses them, what they hold, and which is given up first.
//!
//! A page holds the rows of a few neighbouring tokens, all layers and planes. Its rows depend on those tokens and all
//! before them, so a full page is known by a hash that chains over the pages before it ([`PageKey`]). A page that nobody
//! uses keeps its rows until another needs the memory; the one that lay unused longest goes first.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};

/// What a full page holds: SHA-256 over its tokens and the key of the page before it. Two contents never share a key, so
/// nobody can be given another's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageKey([u8; 32]);

impl PageKey {
    /// The key of a page with `tokens` that follows the page `before`, or begins a sequence.
    pub fn new(before: Option<&Self>, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(before.map_or([0; 32], |key| key.0));
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// Pages of `page_size` tokens that fit into `memory` bytes.
pub fn fitting(memory: u64, bytes_per_token: usize, page_size: usize) -> usize {
    let page = bytes_per_token.saturating_mul(page_size).max(1) as u64;
    usize::try_from(memory / page).unwrap_or(usize::MAX).min(u32::MAX as usize)
}

#[derive(Clone, Debug, Default)]
struct Page {
    users: u32,
    key: Option<PageKey>,
    /// When it was last given back.
    since: u64,
}

/// The pages of a cache.
#[derive(Clone, Debug)]
pub struct PagePool {
    pages: Vec<Page>,
    /// Unused and holding nothing.
    blank: Vec<u32>,
    /// Unused but holding rows that may be used again, by when they were given back.
    idle: BTreeMap<u64, u32>,
    by_key: HashMap<PageKey, u32>,
    clock: u64,
}

impl PagePool {
    /// `pages` blank pages.
    pub fn new(pages: usize) -> Self {
        let pages = pages.min(u32::MAX as usize);
        Self {
            pages: vec![Page::default(); pages],
            blank: (0..pages as u32).rev().collect(),
            idle: BTreeMap::new(),
            by_key: HashMap::new(),
            clock: 0,
        }
    }

    /// All pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there are no pages.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Pages that can be taken.
    pub fn available(&self) -> usize {
        self.blank.len() + self.idle.len()
    }

    /// Of those the ones whose rows can still be used.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// The page that holds what `key` says.
    pub fn find(&self, key: &PageKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Whether nobody uses a page.
    pub fn is_unused(&self, page: u32) -> bool {
        self.pages[page as usize].users == 0
    }

    /// One more user for a page that [`PagePool::find`] found.
    pub fn share(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        if entry.users == 0 {
            self.idle.remove(&entry.since);
        }
        entry.users += 1;
    }

    /// A page for one user, with nothing in it: a blank one, or the one that lay unused longest.
    pub fn take(&mut self) -> Option<u32> {
        let page = match self.blank.pop() {
            Some(page) => page,
            None => self.idle.pop_first()?.1,
        };
        let entry = &mut self.pages[page as usize];
        entry.users = 1;
        if let Some(key) = entry.key.take() {
            self.by_key.remove(&key);
        }
        Some(page)
    }

    /// One user less. Whoever gives several back begins with the last: the ends of texts are given up before what they
    /// share.
    ///
    /// # Panics
    /// When nobody uses the page.
    pub fn give_back(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        assert!(entry.users > 0, "page {page} given back twice");
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        if entry.key.is_some() {
            entry.since = self.clock;
            self.idle.insert(self.clock, page);
            self.clock += 1;
        } else {
            self.blank.push(page);
        }
    }

    /// Tells what a full page holds, once its rows are computed. Where another page is known to hold the same, this one
    /// stays its user's own.
    pub fn publish(&mut self, page: u32, key: PageKey) {
        let entry = &mut self.pages[page as usize];
        if entry.key.is_none() && !self.by_key.contains_key(&key) {
            entry.key = Some(key);
            self.by_key.insert(key, page);
        }
    }

    /// Forgets what unused pages hold.
    pub fn forget(&mut self) {
        for page in std::mem::take(&mut self.idle).into_values() {
            if let Some(key) = self.pages[page as usize].key.take() {
                self.by_key.remove(&key);
            }
            self.blank.push(page);
        }
    }

    /// Checks the books: every page is in one place, and known by what it holds.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn audit(&self) -> Result<(), String> {
        let used = self.pages.iter().filter(|page| page.users > 0).count();
        if used + self.available() != self.len() {
            return Err(format!("{used} used, {} available, {} in all", self.available(), self.len()));
        }
        let mut seen = vec![false; self.len()];
        for page in self.blank.iter().chain(self.idle.values()) {
            let entry = &self.pages[*page as usize];
            if std::mem::replace(&mut seen[*page as usize], true) || entry.users > 0 {
                return Err(format!("page {page} is used and free, or free twice"));
            }
        }
        if let Some(page) = self.blank.iter().find(|page| self.pages[**page as usize].key.is_some()) {
            return Err(format!("blank page {page} is known for rows"));
        }
        for (since, page) in &self.idle {
            if self.pages[*page as usize].key.is_none() || self.pages[*page as usize].since != *since {
                return Err(format!("idle page {page} holds nothing, or is out of order"));
            }
        }
        let keys = self.pages.iter().filter(|page| page.key.is_some()).count();
        let right = |(key, page): (&PageKey, &u32)| self.pages[*page as usize].key == Some(*key);
        if keys != self.by_key.len() || !self.by_key.iter().all(right) {
            return Err("pages and their keys differ".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
