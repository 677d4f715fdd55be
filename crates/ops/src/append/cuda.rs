//! Launches of `kernel.cu`.

use super::{Places, parts, value_width};
use crate::{
    attention::Heads,
    cuda::{Forms, Launch, Mat, Module, gpu_of, launch, module},
    fp8,
    rope::Pairing,
};
use keyfold_core::{DType, SCALE_BLOCK};
use keyfold_tensor::Tensor;

static KERNELS: Module = module!("append");

/// `Append` of the kernel.
#[repr(C)]
struct Append {
    q: Mat,
    k: Mat,
    v: Mat,
    keys: Mat,
    values: Mat,
    key_scales: u64,
    value_scales: u64,
    cos: u64,
    sin: u64,
    positions: u64,
    rows: u64,
    places: i64,
    heads: i32,
    kv_heads: i32,
    width: i32,
    value_width: i32,
    rotates: i32,
    raw_keys: i32,
    key_sharing: i32,
    value_sharing: i32,
}

pub(super) fn append(
    q: Heads<'_>,
    k: Heads<'_>,
    values: Option<(&Tensor, &mut Tensor)>,
    places: Places<'_>,
    keys: &mut Tensor,
) {
    let gpu = gpu_of(q.tensor);
    let mut tensors = vec![q.tensor, k.tensor];
    if let Some((v, plane)) = &values {
        tensors.push(v);
        tensors.extend(places.scales.is_none().then_some(&**plane));
    }
    tensors.extend(places.scales.is_none().then_some(&*keys));
    let table = places.rope;
    let all = table.is_none_or(|table| table.width() == q.width && table.pairing() == Pairing::HalfSplit);
    let columns = values.as_ref().map_or(0, |(v, _)| v.cols());
    let packed = [q, k].iter().all(|heads| heads.stride == heads.width);
    let stored = if places.scales.is_some() { DType::Fp8 } else { DType::Bf16 };
    let planes = [Some(&*keys), values.as_ref().map(|(_, plane)| &**plane)];
    let bf16 = tensors.iter().all(|tensor| tensor.dtype() == DType::Bf16)
        && planes.iter().flatten().all(|plane| plane.dtype() == stored);
    let wide = Forms::of(DType::Bf16, &[q.width / 2, q.width, columns], &tensors).lanes() == 8;
    let rotates = table.is_some();
    let raw_keys = places.raw_keys || !rotates;
    let key_sharing = fp8::sharing(k.width);
    let value_sharing = fp8::sharing(values.as_ref().map_or(0, |(v, _)| value_width(v, k.count)));
    // Items of 8 channels, or of 8 pairs: queries, values, keys.
    let queries = if rotates { q.count * q.width / 16 } else { 0 };
    let first_key = queries + columns / 8;
    // In 8 bits, threads side by side have the channels of one scale, pairs of them or all. They are to be of one warp.
    let paired = !raw_keys && key_sharing > SCALE_BLOCK;
    let aligned =
        |first: usize, lanes: usize| lanes.is_power_of_two() && lanes <= 32 && first.is_multiple_of(lanes);
    let whole = stored == DType::Bf16
        || (q.width.is_multiple_of(2 * SCALE_BLOCK)
            && columns.is_multiple_of(value_sharing)
            && planes.iter().flatten().all(|plane| plane.stride().is_multiple_of(8))
            && aligned(queries, value_sharing / 8)
            && aligned(first_key, key_sharing / if paired { 16 } else { 8 }));
    if !(all && packed && bf16 && wide && whole) {
        return parts(q, k, values, places, keys);
    }
    let (tokens, places_in_cache) = (q.tensor.rows(), keys.rows());
    assert!(
        places.positions.len() == tokens && places.rows.len() == tokens,
        "append: places of {tokens} tokens"
    );
    assert!(
        places.rows.values().iter().all(|row| (*row as usize) < places_in_cache),
        "append: a row is not below {places_in_cache}"
    );
    if let Some(table) = table {
        let last = places.positions.values().iter().max().map_or(0, |last| *last as usize);
        assert!(last < table.positions(), "append: position {last} of a table of {}", table.positions());
    }
    if tokens == 0 {
        return;
    }
    let angles = table.map(|table| (table.on(gpu), table.positions()));
    let (cos, positions) = angles.as_ref().map_or((0, 0), |(table, positions)| (table.address(), *positions));
    let [v, plane] = values.as_ref().map_or([Mat::NONE; 2], |(v, plane)| [Mat::of(v), Mat::of(plane)]);
    let scales_of = |plane: &Tensor| {
        let rows = places.scales.map(|scales| fp8::Rows { values: plane, scales });
        rows.map_or(0, |rows| rows.scales_from(rows.block()))
    };
    let append = Append {
        q: Mat::of(q.tensor),
        k: Mat::of(k.tensor),
        v,
        keys: Mat::of(keys),
        values: plane,
        key_scales: scales_of(keys),
        value_scales: values.as_ref().map_or(0, |(_, plane)| scales_of(plane)),
        cos,
        sin: cos + (positions * q.width / 2 * 4) as u64,
        positions: places.positions.on(gpu),
        rows: places.rows.on(gpu),
        places: places_in_cache as i64,
        heads: q.count as i32,
        kv_heads: k.count as i32,
        width: q.width as i32,
        value_width: columns as i32,
        rotates: i32::from(rotates),
        raw_keys: i32::from(raw_keys),
        key_sharing: key_sharing as i32,
        value_sharing: value_sharing as i32,
    };
    // Enough for keys that are not rotated.
    let items = first_key + k.count * q.width / 8;
    let grid = [tokens as u32, items.div_ceil(256).clamp(1, 64) as u32, 1];
    let name = if places.scales.is_some() { "append_fp8" } else { "append" };
    launch!(gpu, KERNELS, name, Launch { grid, ..Launch::blocks(1, 256) }.early(); append);
}
