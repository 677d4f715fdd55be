//! Linear maps with torch's weight layout [out, in]: forward and both gradients.

mod bias;
#[cfg(feature = "cuda")]
mod chain;
#[cfg(feature = "cuda")]
mod cuda;
mod dot;
#[cfg(feature = "cuda")]
mod few;
mod fused;
#[cfg(any(test, feature = "cuda"))]
mod order;
#[cfg(feature = "cuda")]
mod product;
#[cfg(test)]
mod reference;
#[cfg(feature = "cuda")]
mod skinny;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub(crate) use chain::in_one_kernel;
pub use fused::{Fused, forward_fused, fuses};

use crate::{
    attention::Heads,
    dispatch::by_device,
    gemm::{self, View, ViewMut, gemm},
    parallel::for_each_row_block,
};
use keyfold_core::DType;
use keyfold_tensor::{Device, Tensor};

/// Without GPUs there is no such kernel.
#[cfg(not(feature = "cuda"))]
pub(crate) fn in_one_kernel(work: impl FnOnce()) {
    work();
}

/// `out (+)= x w^T (+ bias)`.
///
/// A few rows (decoding) are computed in f32 whatever the [precision](crate::gemm::set_precision): reading the weight
/// takes longer.
///
/// # Shapes
/// `x` [T, in] f32, `w` [out, in] f32 or bf16 and contiguous, `bias` [1, out] f32, `out` [T, out] f32. On a GPU `x` and
/// `w` have one element type, and `out` any; so in the backward passes.
///
/// # Panics
/// When the shapes or element types do not match.
pub fn forward(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, out: &mut Tensor, accumulate: bool) {
    check("linear::forward", x, w, out);
    check_bias("linear::forward", bias, out);
    by_device!(out, forward_cpu(x, w, bias, out, accumulate), cuda::forward(x, w, bias, out, accumulate));
}

/// `out = x [w_0; w_1; ..]^T (+ bias)`: the outputs of several weights side by side, with what they read prepared once.
///
/// # Shapes
/// `x` [T, in], `ws` each [out, in] and contiguous, `bias` [1, sum of out], `out` [T, sum of out].
///
/// # Panics
/// As [`forward`], and when the outputs are not as many as the columns of `out`.
pub fn forward_joined(x: &Tensor, ws: &[&Tensor], bias: Option<&Tensor>, out: &mut Tensor) {
    let outputs: usize = ws.iter().map(|w| w.rows()).sum();
    assert_eq!(outputs, out.cols(), "linear::forward_joined: outputs of all weights, and columns");
    let mut column = 0;
    let mut parts: Vec<(&Tensor, Tensor)> = Vec::with_capacity(ws.len());
    for w in ws {
        parts.push((w, out.columns(column, w.rows())));
        column += w.rows();
    }
    let few = x.rows() <= gemm::FEW_ROWS || ws.iter().any(|w| w.dtype() != DType::Bf16);
    if few || ws.len() < 2 || x.device() != Device::Cpu {
        let mut column = 0;
        for (w, out) in &mut parts {
            let bias = bias.map(|bias| bias.columns(column, w.rows()));
            forward(x, w, bias.as_ref(), out, false);
            column += w.rows();
        }
        return;
    }
    check_bias("linear::forward_joined", bias, out);
    parts.iter().for_each(|(w, out)| check("linear::forward_joined", x, w, out));
    if let Some(bias) = bias {
        add_bias(bias, out, false);
    }
    let targets = parts.iter_mut().map(|(w, out)| gemm::Target {
        weight: View::of_bf16(w),
        out: ViewMut::of(out),
        accumulate: bias.is_some(),
    });
    gemm::gemm_targets(View::of(x), targets.collect());
}

fn forward_cpu(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, out: &mut Tensor, accumulate: bool) {
    let accumulate = match bias {
        None => accumulate,
        Some(bias) => {
            add_bias(bias, out, accumulate);
            true
        }
    };
    let tiles = gemm::few_rows_on_tiles(w.dtype(), w.rows());
    if x.rows() <= if tiles { dot::MAX_ROWS_BESIDE_TILES } else { dot::MAX_ROWS } {
        return dot::forward(pulp::Arch::new(), x, w, out, accumulate);
    }
    let (out, x) = (ViewMut::of(out), View::of(x));
    match w.dtype() {
        DType::F32 => gemm(out, accumulate, 1.0, x, View::of(w).t()),
        DType::Bf16 => gemm(out, accumulate, 1.0, x, View::of_bf16(w).t()),
        other => other.unsupported("linear"),
    }
}

/// Each head's own map: `out_h = x_h w_h^T`, where `w_h` is the h-th of as many equal groups of rows of `w`.
///
/// # Shapes
/// `x` [T, heads of in], `w` [heads * out, in] contiguous, `out` [T, heads of out]; element types as in [`forward`].
///
/// # Panics
/// When the shapes or element types do not match.
pub fn forward_heads(x: Heads<'_>, w: &Tensor, out: Heads<'_>) {
    let rows = x.tensor.rows();
    x.check("x", rows, (x.count, w.cols()));
    out.check("out", rows, (x.count, w.rows() / x.count));
    assert!(
        w.is_contiguous() && w.rows() == x.count * out.width,
        "linear::forward_heads: rows of the weight"
    );
    let cpu = || {
        for head in 0..x.count {
            let mut to = out.tensor.columns(head * out.stride, out.width);
            let w = w.row_range(head * out.width, out.width);
            forward_cpu(&x.tensor.columns(head * x.stride, x.width), &w, None, &mut to, false);
        }
    };
    by_device!(x.tensor, cpu(), cuda::forward_heads(x, w, out));
}

/// `dx (+)= dy w`.
///
/// # Shapes
/// `dy` [T, out], `w` [out, in] f32 and contiguous, `dx` [T, in].
///
/// # Panics
/// When the shapes or element types do not match.
pub fn backward_input(dy: &Tensor, w: &Tensor, dx: &mut Tensor, accumulate: bool) {
    check("linear::backward_input", dx, w, dy);
    by_device!(
        dx,
        gemm(ViewMut::of(dx), accumulate, 1.0, View::of(dy), View::of(w)),
        cuda::backward_input(dy, w, dx, accumulate)
    );
}

/// `dw (+)= dy^T x`.
///
/// # Shapes
/// `dy` [T, out], `x` [T, in], `dw` [out, in].
///
/// # Panics
/// When the shapes or element types do not match.
pub fn backward_weight(dy: &Tensor, x: &Tensor, dw: &mut Tensor, accumulate: bool) {
    check("linear::backward_weight", x, dw, dy);
    by_device!(
        dw,
        gemm(ViewMut::of(dw), accumulate, 1.0, View::of(dy).t(), View::of(x)),
        cuda::backward_weight(dy, x, dw, accumulate)
    );
}

/// `d_bias (+)=` the sum of the rows of `dy`.
///
/// # Shapes
/// `dy` [T, out], `d_bias` [1, out].
///
/// # Panics
/// When the shapes or element types do not match.
pub fn backward_bias(dy: &Tensor, d_bias: &mut Tensor, accumulate: bool) {
    check_bias("linear::backward_bias", Some(d_bias), dy);
    by_device!(dy, bias::backward(dy, d_bias, accumulate), cuda::backward_bias(dy, d_bias, accumulate));
}

/// Makes every row of `out` the bias, or adds it.
fn add_bias(bias: &Tensor, out: &mut Tensor, add: bool) {
    // SAFETY: nobody writes to the bias meanwhile.
    let bias = unsafe { bias.row(0) };
    for_each_row_block(out.rows(), 256, |rows| {
        for row in rows {
            // SAFETY: blocks of rows are disjoint.
            let row = unsafe { out.row_mut(row) };
            if add {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            } else {
                row.copy_from_slice(bias);
            }
        }
    });
}

#[track_caller]
fn check_bias(op: &str, bias: Option<&Tensor>, y: &Tensor) {
    if let Some(bias) = bias {
        assert!(
            bias.rows() == 1 && bias.cols() == y.cols(),
            "{op}: bias [{}, {}] for {} outputs",
            bias.rows(),
            bias.cols(),
            y.cols()
        );
    }
}

fn check(op: &str, x: &Tensor, w: &Tensor, y: &Tensor) {
    assert!(
        x.rows() == y.rows() && x.cols() == w.cols() && y.cols() == w.rows(),
        "{op}: input [{}, {}], weight [{}, {}], output [{}, {}]",
        x.rows(),
        x.cols(),
        w.rows(),
        w.cols(),
        y.rows(),
        y.cols()
    );
    assert!(w.is_contiguous(), "{op}: the weight has gaps between its rows");
}
