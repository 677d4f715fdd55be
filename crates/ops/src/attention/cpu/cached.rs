//! Queries over a cache: decoding and chunked prefill.

#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{
    base2,
    decode::{Decode, NARROW},
    forward::{Attend, Queries, Source},
    rows::{HeadRows, PagedRows},
    schedule::{Common, Schedule},
};
use crate::attention::{Cached, Heads};
use pulp::Arch;

/// See [`crate::attention::cached`]; many queries go through tiles where `on_tiles` says so.
pub(in crate::attention) fn cached(
    arch: Arch,
    on_tiles: bool,
    q: Heads<'_>,
    cache: &Cached<'_>,
    out: Heads<'_>,
) {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = on_tiles;
    assert!(cache.scales.is_none(), "attention: a cache in 8 bits on the host");
    let widths = cache.k.width + cache.v.width;
    let slopes = base2(cache.alibi);
    let common = Common {
        heads: q.count,
        kv_heads: cache.k.count,
        column: widths,
        work: widths,
        window: cache.window,
        slopes: slopes.as_deref(),
    };
    Schedule::new(common, cache.paged).run(cache.v.width, out, |task, finish| {
        let rows =
            |heads| PagedRows::new(HeadRows::new(heads, task.kv_head, 0), cache.paged.page_size, task.pages);
        let source = Source { keys: rows(&cache.k), values: rows(&cache.v), rotate: cache.rotate };
        let queries = Queries { heads: q, first: task.first, scale: cache.scale, view: task.view };
        let keys = task.keys;
        if task.new == 1 && task.chunk.heads.len() <= NARROW {
            arch.dispatch(Decode { source, queries, heads: task.chunk.heads, keys, finish });
        } else {
            let attend = Attend { source, queries, keys, chunk: &task.chunk, finish };
            #[cfg(target_arch = "x86_64")]
            if on_tiles && let Some(tiles) = tiles::worth(task.new) {
                return tiles::run(attend, &tiles);
            }
            arch.dispatch(attend);
        }
    });
}
