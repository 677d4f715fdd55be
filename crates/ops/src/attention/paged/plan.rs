//! Who computes what: the keys of all sequences in tiles, cut into equal shares.
//!
//! The kernels read a share each. A task (a sequence and a kv head) whose tiles lie in several shares is cut, and its parts
//! are added up. Decoding is bound by reading, so equal shares end together; where shares of whole tasks, or tasks of whole
//! shares, are little larger than that, they are better: no parts need to be joined.

/// Consecutive tiles of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Sequence times kv heads plus kv head.
    pub task: usize,
    /// The first tile.
    pub first: usize,
    /// The tile behind the last.
    pub end: usize,
    /// Which of [`Plan::cuts`] this is a part of, if it is not the whole task.
    pub cut: Option<usize>,
}

/// A task in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Which task.
    pub task: usize,
    /// Where its first part is kept; the others follow.
    pub slot: usize,
    /// Number of parts.
    pub parts: usize,
    /// The share that has the first part; those that follow have the others.
    pub share: usize,
}

/// How the keys of a sequence make tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Keys of a tile.
    pub keys: usize,
    /// Keys that the new tokens of a sequence see between them, at most: its last ones.
    pub reach: usize,
}

impl Tiles {
    /// The first tile of a sequence of `length` keys that is read.
    pub fn first(self, length: u32) -> usize {
        (length as usize).saturating_sub(self.reach) / self.keys
    }

    /// Tiles of a sequence of `length` keys that are read; one if it has no keys, as its output still needs to be written.
    pub fn count(self, length: u32) -> usize {
        ((length as usize).div_ceil(self.keys) - self.first(length)).max(1)
    }
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The items of each share, as a range of [`Plan::items`].
    pub shares: Vec<std::ops::Range<usize>>,
    /// All items, by task.
    pub items: Vec<Item>,
    /// Tasks in parts.
    pub cuts: Vec<Cut>,
}

impl Plan {
    /// At most this many parts are kept, for `shares` shares: each begins or ends with one of a cut task.
    pub const fn slots(shares: usize) -> usize {
        2 * shares
    }

    /// The plan for sequences of `lengths` keys in tiles, for `kv_heads` heads each, among `shares`.
    pub fn new(lengths: &[u32], kv_heads: usize, shares: usize, of: Tiles) -> Self {
        let tiles = |length: &u32| of.count(*length);
        let total = kv_heads * lengths.iter().map(tiles).sum::<usize>();
        let longest = lengths.iter().map(tiles).max().unwrap_or(1);
        let Size { tiles: size, apart } = Size::of(total, longest, kv_heads * lengths.len(), shares);
        let mut plan = Self { shares: vec![0..0; shares], items: Vec::new(), cuts: Vec::new() };
        let (mut start, mut slot) = (0, 0);
        for (task, length) in lengths.iter().flat_map(|length| vec![length; kv_heads]).enumerate() {
            let end = start + tiles(length);
            let (first, last) = (start / size, (end - 1) / size);
            let parts = last - first + 1;
            let cut = (parts > 1).then_some(plan.cuts.len());
            if cut.is_some() {
                plan.cuts.push(Cut { task, slot, parts, share: first });
                slot += parts;
            }
            for share in first..=last {
                let number = plan.items.len();
                let (from, to) = (start.max(share * size), end.min((share + 1) * size));
                let to = if *length == 0 { from } else { to };
                let skipped = of.first(*length);
                plan.items.push(Item { task, first: from - start + skipped, end: to - start + skipped, cut });
                if plan.shares[share].is_empty() {
                    plan.shares[share].start = number;
                }
                plan.shares[share].end = number + 1;
            }
            start = if apart { end.next_multiple_of(size) } else { end };
        }
        plan
    }
}

/// Tiles that a share may have more than is even, so that no share has the end of one task and the beginning of another: parts
/// of two tasks take longer to write and join than a tile to read.
pub(super) const WHOLE: usize = 2;

/// Tiles of a share.
struct Size {
    tiles: usize,
    /// Whether every task begins a share.
    apart: bool,
}

impl Size {
    /// Even shares of `total` tiles, unless shares of one task each, or of whole tasks, take at most a sixteenth, or [`WHOLE`]
    /// tiles, more. The `longest` of the `tasks` decides: that is for tasks that are about equal.
    fn of(total: usize, longest: usize, tasks: usize, shares: usize) -> Self {
        let even = total.div_ceil(shares).max(1);
        let apart = longest >= even && tasks <= shares;
        let whole = match apart {
            true => longest.div_ceil(shares / tasks.max(1)),
            false => longest * even.div_ceil(longest),
        };
        if whole * 16 <= even * 17 || whole <= even + WHOLE {
            Self { tiles: whole, apart }
        } else {
            Self { tiles: even, apart: false }
        }
    }
}
