//! Splitting work over threads in a way that does not change results.
//!
//! Two mechanisms: rayon for regions of a training step, which are long, and a team for those of a decoding step,
//! which last microseconds: less than waking a sleeping thread.

mod team;
#[cfg(test)]
mod tests;

use rayon::prelude::*;
use std::{ops::Range, sync::LazyLock};
use team::Team;

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
        // Between brief regions the team's members look for the next one, on the processors that a pool would want.
        blocks if TEAM.is_awake() => brief(blocks, |index| work(range(index))),
        blocks => (0..blocks).into_par_iter().for_each(|index| work(range(index))),
    }
}

static TEAM: LazyLock<Team> = LazyLock::new(Team::new);

/// Calls `work` for each of `0..tasks` on as many threads as the current rayon pool has, for regions of microseconds
/// that follow closely on one another.
///
/// A thread gets neighbouring tasks, the same ones every time when nobody is late, so that it finds its part of a
/// weight in its own cache. Within another such region, or while another thread has one, the caller does all tasks.
///
/// # Panics
/// When `work` does, after the tasks begun have ended.
pub fn brief(tasks: usize, work: impl Fn(usize) + Sync) {
    match tasks {
        0 => {}
        1 => work(0),
        _ => TEAM.run(tasks, rayon::current_num_threads(), &work),
    }
}
