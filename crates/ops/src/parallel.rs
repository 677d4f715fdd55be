//! Splitting work over threads in a way that does not change results.

use rayon::prelude::*;
use std::ops::Range;

/// Calls `work` for consecutive row ranges that together are `0..rows`, in parallel when there are at least two.
///
/// Ranges hold `block` rows (the last one fewer), whatever the number of threads, so that a result that depends on the
/// split (a partial sum per block) is the same on every machine.
pub fn for_each_row_block(rows: usize, block: usize, work: impl Fn(Range<usize>) + Sync) {
    let block = block.max(1);
    let range = |index: usize| index * block..((index + 1) * block).min(rows);
    match rows.div_ceil(block) {
        0 => {}
        1 => work(0..rows),
        blocks => (0..blocks).into_par_iter().for_each(|index| work(range(index))),
    }
}
