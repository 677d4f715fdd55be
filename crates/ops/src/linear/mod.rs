//! Linear maps with torch's weight layout [out, in]: forward and both gradients.

mod bias;
mod dot;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use crate::{
    gemm::{View, ViewMut, gemm},
    parallel::for_each_row_block,
};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

/// `out (+)= x w^T (+ bias)`.
///
/// A few rows (decoding) are computed in f32 whatever the [precision](crate::gemm::set_precision): reading the weight
/// takes longer.
///
/// # Shapes
/// `x` [T, in] f32, `w` [out, in] f32 or bf16 and contiguous, `bias` [1, out] f32, `out` [T, out] f32.
///
/// # Panics
/// When the shapes or element types do not match.
pub fn forward(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, out: &mut Tensor, accumulate: bool) {
    check("linear::forward", x, w, out);
    let accumulate = match bias {
        None => accumulate,
        Some(bias) => {
            add_bias(bias, out, accumulate);
            true
        }
    };
    if x.rows() <= dot::MAX_ROWS {
        return dot::forward(pulp::Arch::new(), x, w, out, accumulate);
    }
    let (out, x) = (ViewMut::of(out), View::of(x));
    match w.dtype() {
        DType::F32 => gemm(out, accumulate, 1.0, x, View::of(w).t()),
        DType::Bf16 => gemm(out, accumulate, 1.0, x, View::of_bf16(w).t()),
    }
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
    gemm(ViewMut::of(dx), accumulate, 1.0, View::of(dy), View::of(w));
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
    gemm(ViewMut::of(dw), accumulate, 1.0, View::of(dy).t(), View::of(x));
}

/// `d_bias (+)=` the sum of the rows of `dy`.
///
/// # Shapes
/// `dy` [T, out], `d_bias` [1, out].
///
/// # Panics
/// When the shapes or element types do not match.
pub fn backward_bias(dy: &Tensor, d_bias: &mut Tensor, accumulate: bool) {
    assert!(
        d_bias.rows() == 1 && d_bias.cols() == dy.cols(),
        "linear::backward_bias: bias [{}, {}] for {} outputs",
        d_bias.rows(),
        d_bias.cols(),
        dy.cols()
    );
    bias::backward(dy, d_bias, accumulate);
}

/// Makes every row of `out` the bias, or adds it.
fn add_bias(bias: &Tensor, out: &mut Tensor, add: bool) {
    assert!(
        bias.rows() == 1 && bias.cols() == out.cols(),
        "linear::forward: bias [{}, {}] for {} outputs",
        bias.rows(),
        bias.cols(),
        out.cols()
    );
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
