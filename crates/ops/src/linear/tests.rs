use super::{reference, *};
use crate::testing::{assert_close, random, to_f64};
use keyfold_tensor::Arena;
use pulp::Arch;

const SIZES: [(usize, usize, usize); 8] = [
    (1, 63, 65),
    (2, 64, 48),
    (3, 1, 7),
    (4, 256, 33),
    (7, 130, 61),
    (16, 77, 5),
    (17, 96, 61),
    (65, 63, 131),
];

/// A tensor with poisoned columns on both sides.
fn strided(arena: &Arena, rows: usize, cols: usize, values: &[f32]) -> Tensor {
    let mut view = arena.tensor(rows, cols + 11, DType::F32).columns(5, cols);
    view.write(values);
    view
}

fn sum(start: &[f32], more: &[f64]) -> Vec<f64> {
    start.iter().zip(more).map(|(x, y)| f64::from(*x) + y).collect()
}

#[test]
fn forward_matches_the_reference() {
    let arena = Arena::poisoned();
    for (t, input, output) in SIZES {
        let (x, bias) = (random(1, t * input), random(2, output));
        for dtype in [DType::F32, DType::Bf16] {
            let mut w = arena.tensor(output, input, dtype);
            w.write(&random(3, output * input));
            let want = reference::forward(&to_f64(&x), &to_f64(&w.to_vec()), input, output);
            let name = format!("forward {t} {input} {output} {dtype}");
            let x = strided(&arena, t, input, &x);
            let mut out = strided(&arena, t, output, &vec![f32::NAN; t * output]);
            forward(&x, &w, None, &mut out, false);
            assert_close(&name, &out.to_vec(), &want, 1e-5);
            let start = random(4, t * output);
            out.write(&start);
            forward(&x, &w, None, &mut out, true);
            assert_close(&name, &out.to_vec(), &sum(&start, &want), 1e-5);

            let biased: Vec<f64> =
                want.iter().enumerate().map(|(i, y)| y + f64::from(bias[i % output])).collect();
            let row = arena.tensor_of(1, output, &bias);
            forward(&x, &w, Some(&row), &mut out, false);
            assert_close(&name, &out.to_vec(), &biased, 1e-5);
            out.write(&start);
            forward(&x, &w, Some(&row), &mut out, true);
            assert_close(&name, &out.to_vec(), &sum(&start, &biased), 1e-5);
        }
    }
}

#[test]
fn gradients_match_the_reference() {
    let arena = Arena::poisoned();
    for (t, input, output) in SIZES {
        let (x, w, dy) = (random(1, t * input), random(2, output * input), random(3, t * output));
        let (want_dx, want_dw) = reference::backward(&to_f64(&dy), &to_f64(&x), &to_f64(&w), input, output);
        let name = format!("{t} {input} {output}");
        let (x, dy) = (strided(&arena, t, input, &x), strided(&arena, t, output, &dy));
        let w = arena.tensor_of(output, input, &w);
        let mut dx = strided(&arena, t, input, &vec![f32::NAN; t * input]);
        let mut dw = arena.tensor(output, input, DType::F32);
        backward_input(&dy, &w, &mut dx, false);
        backward_weight(&dy, &x, &mut dw, false);
        assert_close(&format!("dx {name}"), &dx.to_vec(), &want_dx, 1e-5);
        assert_close(&format!("dw {name}"), &dw.to_vec(), &want_dw, 1e-5);
        let (start_dx, start_dw) = (random(5, t * input), random(6, output * input));
        dx.write(&start_dx);
        dw.write(&start_dw);
        backward_input(&dy, &w, &mut dx, true);
        backward_weight(&dy, &x, &mut dw, true);
        assert_close(&format!("dx += {name}"), &dx.to_vec(), &sum(&start_dx, &want_dx), 1e-5);
        assert_close(&format!("dw += {name}"), &dw.to_vec(), &sum(&start_dw, &want_dw), 1e-5);
    }
}

#[test]
fn reference_gradients_match_finite_differences() {
    let (t, input, output) = (3, 4, 5);
    let (x, w, dy) =
        (to_f64(&random(1, t * input)), to_f64(&random(2, output * input)), to_f64(&random(3, t * output)));
    let (dx, dw) = reference::backward(&dy, &x, &w, input, output);
    let loss = |x: &[f64], w: &[f64]| -> f64 {
        reference::forward(x, w, input, output).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
    };
    let moved = |values: &[f64], i: usize, by: f64| {
        let mut values = values.to_vec();
        values[i] += by;
        values
    };
    for (i, dx) in dx.iter().enumerate() {
        let slope = (loss(&moved(&x, i, 1e-3), &w) - loss(&moved(&x, i, -1e-3), &w)) / 2e-3;
        assert!((slope - dx).abs() < 1e-9, "dx[{i}]: {slope} {dx}");
    }
    for (i, dw) in dw.iter().enumerate() {
        let slope = (loss(&x, &moved(&w, i, 1e-3)) - loss(&x, &moved(&w, i, -1e-3))) / 2e-3;
        assert!((slope - dw).abs() < 1e-9, "dw[{i}]: {slope} {dw}");
    }
}

#[test]
fn a_few_rows_without_vectors() {
    let arena = Arena::poisoned();
    for (t, input, output) in [(1, 65, 9), (4, 64, 5), (6, 33, 7)] {
        let x = random(1, t * input);
        for dtype in [DType::F32, DType::Bf16] {
            let mut w = arena.tensor(output, input, dtype);
            w.write(&random(2, output * input));
            let want = reference::forward(&to_f64(&x), &to_f64(&w.to_vec()), input, output);
            let mut out = arena.tensor(t, output, DType::F32);
            dot::forward(Arch::Scalar, &arena.tensor_of(t, input, &x), &w, &mut out, false);
            assert_close("scalar", &out.to_vec(), &want, 1e-5);
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    let arena = Arena::poisoned();
    for t in [1, 3, 16, 40] {
        for dtype in [DType::F32, DType::Bf16] {
            let (input, output) = (515, 2050);
            let x = arena.tensor_of(t, input, &random(1, t * input));
            let mut w = arena.tensor(output, input, dtype);
            w.write(&random(2, output * input));
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut out = arena.tensor(t, output, DType::F32);
                pool.install(|| forward(&x, &w, None, &mut out, false));
                out.to_vec()
            };
            let one = on(1);
            assert!(one == on(2) && one == on(5), "{t} rows, {dtype}");
        }
    }
}

#[test]
#[should_panic(expected = "linear::forward: input [2, 3], weight [4, 5], output [2, 4]")]
fn shapes_are_checked() {
    let arena = Arena::new();
    let (x, w) = (arena.zeros(2, 3, DType::F32), arena.zeros(4, 5, DType::F32));
    forward(&x, &w, None, &mut arena.zeros(2, 4, DType::F32), false);
}

#[test]
fn bias_gradients_are_column_sums() {
    let arena = Arena::poisoned();
    for (t, _, output) in SIZES {
        let (dy, start) = (random(1, t * output), random(2, output));
        let want: Vec<f64> =
            (0..output).map(|o| dy.iter().skip(o).step_by(output).map(|x| f64::from(*x)).sum()).collect();
        let dy = strided(&arena, t, output, &dy);
        let mut d_bias = arena.tensor(1, output, DType::F32);
        backward_bias(&dy, &mut d_bias, false);
        assert_close("d_bias", &d_bias.to_vec(), &want, 1e-5);
        d_bias.write(&start);
        backward_bias(&dy, &mut d_bias, true);
        assert_close("d_bias accumulated", &d_bias.to_vec(), &sum(&start, &want), 1e-5);
    }
}

/// As each weight by itself, to the last bit.
#[test]
fn weights_side_by_side() {
    let arena = Arena::poisoned();
    for dtype in [DType::F32, DType::Bf16] {
        for t in [1, 3, 40, 64, 65, 130] {
            let (input, widths) = (97, [40, 33, 1]);
            let x = strided(&arena, t, input, &random(1, t * input));
            let ws: Vec<Tensor> = widths
                .iter()
                .map(|n| {
                    let mut w = arena.tensor(*n, input, dtype);
                    w.write(&random(*n as u64, n * input));
                    w
                })
                .collect();
            let ws: Vec<&Tensor> = ws.iter().collect();
            let bias = arena.tensor_of(1, 74, &random(2, 74));
            for bias in [None, Some(&bias)] {
                let mut out = strided(&arena, t, 74, &vec![f32::NAN; t * 74]);
                forward_joined(&x, &ws, bias, &mut out);
                let (mut column, got) = (0, out.to_vec());
                for w in &ws {
                    let mut want = arena.tensor(t, w.rows(), DType::F32);
                    forward(&x, w, bias.map(|b| b.columns(column, w.rows())).as_ref(), &mut want, false);
                    for (got, want) in got.chunks_exact(74).zip(want.to_vec().chunks_exact(w.rows())) {
                        assert_eq!(&got[column..column + w.rows()], want, "{t} rows, {dtype}");
                    }
                    column += w.rows();
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "linear::forward_joined: outputs of all weights, and columns")]
fn outputs_side_by_side_are_counted() {
    let arena = Arena::new();
    let (x, w) = (arena.zeros(2, 3, DType::F32), arena.zeros(4, 3, DType::F32));
    forward_joined(&x, &[&w, &w], None, &mut arena.zeros(2, 7, DType::F32));
}

/// Products of a few rows, however they are cut, have room for what they need, and work for every block.
#[cfg(feature = "cuda")]
#[test]
fn cut_products_fit() {
    use super::skinny::{Cut, SHARED};
    for tokens in 1..=64 {
        for inputs in [8, 64, 72, 1000, 2048, 5632, 8192, 65536] {
            for outputs in [1, 65, 1536, 2048, 8191, 8192, 11264, 65536] {
                let name = format!("{tokens} x {inputs} x {outputs}");
                let cut = Cut::new(tokens, inputs, outputs, false).unwrap();
                let (width, tiles) = (64 * cut.warpgroups, inputs.div_ceil(64));
                assert!(cut.tokens >= tokens && cut.blocks * width >= outputs, "{name}: {cut:?}");
                assert!((1..=8).contains(&cut.parts) && cut.parts <= tiles, "{name}: {cut:?}");
                let ring = cut.stages * (width + cut.tokens) * 128;
                assert!(cut.stages >= 2 && cut.tokens * (width + 4) * 4 <= ring, "{name}: {cut:?}");
                assert!(ring < cut.shared && cut.shared <= SHARED, "{name}: {cut:?}");
                // Gains of 12,288 columns find room beside them.
                let normed = Cut::new(tokens, inputs, outputs, true);
                assert!(normed.is_some() || inputs > 12288, "{name}");
                assert!(normed.is_none_or(|cut| cut.shared <= SHARED), "{name}: {normed:?}");
            }
        }
    }
}
