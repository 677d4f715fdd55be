//! The loss and the optimizer.

use super::{
    dense::limit,
    rows::TYPES,
    twin::{Gaps, Twins, random},
};
use crate::{
    adamw::{self, Clip, Hyper, Norm},
    cross_entropy::{self, IGNORE},
    muon,
};
use keyfold_core::DType;
use keyfold_tensor::Tensor;

pub(super) fn cross_entropy(twins: &mut Twins<'_>) {
    for dtype in TYPES {
        for (tokens, vocabulary, width) in [(1, 2, 8), (63, 17, 16), (130, 1000, 64), (1029, 4099, 72)] {
            for weighted in [false, true] {
                let size = format!("{tokens} x {vocabulary} x {width}, weights {weighted}, {dtype}");
                let x = twins.random(tokens, width, dtype, Gaps::Aligned);
                let w = twins.random(vocabulary, width, dtype, Gaps::None);
                let mut targets = twins.ids(tokens, vocabulary);
                targets.iter_mut().skip(3).step_by(7).for_each(|target| *target = IGNORE);
                let weights: Option<Vec<f32>> =
                    weighted.then(|| random(9, tokens).iter().map(|x| (x * 2.0).max(0.0)).collect());
                let weights = weights.as_deref();
                let mut dx = twins.empty(tokens, width, dtype, Gaps::Aligned);
                let mut dw = twins.random(vocabulary, width, DType::F32, Gaps::None);
                let run = |x: &Tensor, w: &Tensor, dx: &mut Tensor, dw: &mut Tensor| {
                    cross_entropy::forward_backward(x, w, &targets, weights, 0.3, dx, dw).read()
                };
                let want = run(&x.host, &w.host, &mut dx.host, &mut dw.host);
                let got = run(&x.device, &w.device, &mut dx.device, &mut dw.device);
                let both = |loss: cross_entropy::Loss| [loss.sum as f32, loss.weight as f32];
                twins.compare_values(format!("loss, {size}"), &both(got), &both(want), limit(dtype));
                twins.compare(format!("dx, {size}"), &dx, 4.0 * limit(dtype));
                twins.compare(format!("dw, {size}"), &dw, 4.0 * limit(dtype));

                let run = |x: &Tensor, w: &Tensor| {
                    let (mut each, mut right) = (vec![0.0; tokens], vec![false; tokens]);
                    let (losses, correct) = (Some(&mut each[..]), Some(&mut right[..]));
                    let loss = cross_entropy::evaluate(x, w, &targets, weights, losses, correct);
                    let right = right.iter().map(|right| f32::from(u8::from(*right))).collect::<Vec<_>>();
                    (loss, each, right)
                };
                let ((want, want_each, want_right), (got, each, right)) =
                    (run(&x.host, &w.host), run(&x.device, &w.device));
                twins.compare_values(format!("evaluated loss, {size}"), &both(got), &both(want), 1e-5);
                twins.compare_values(format!("losses, {size}"), &each, &want_each, 1e-5);
                twins.compare_values(format!("right answers, {size}"), &right, &want_right, 0.0);
            }
        }
    }
}

pub(super) fn muon(twins: &mut Twins<'_>) {
    for (rows, cols) in [(8, 8), (63, 17), (64, 200), (200, 64), (256, 768)] {
        let [mut param, grad, mut m] = [0; 3].map(|_| twins.random(rows, cols, DType::F32, Gaps::None));
        let before = param.host.to_vec();
        let hyper = muon::Hyper { lr: 0.1, momentum: 0.95, weight_decay: 0.0, grad_scale: 0.7 };
        muon::step(&mut param.host, &grad.host, &mut m.host, &hyper);
        muon::step(&mut param.device, &grad.device, &mut m.device, &hyper);
        twins.compare(format!("momentum of {rows} x {cols}"), &m, 1e-6);
        let change = |now: &Tensor| now.to_vec().iter().zip(&before).map(|(a, b)| a - b).collect::<Vec<_>>();
        // The iteration itself amplifies rounding; it aims at singular values near 1, not at 1.
        let (got, want) = (change(&param.device), change(&param.host));
        twins.compare_values(format!("update of {rows} x {cols}"), &got, &want, 1e-1);
    }
}

pub(super) fn adamw(twins: &mut Twins<'_>) {
    for len in [1, 63, 1000, 100_004, 1_000_003] {
        let [mut param, grad, mut m] = [0; 3].map(|_| twins.random(1, len, DType::F32, Gaps::None));
        let mut v = twins.random(1, len, DType::F32, Gaps::None);
        let squares: Vec<f32> = v.host.to_vec().iter().map(|x| x * x).collect();
        v.host.write(&squares);
        v.device.write(&squares);
        let mut copy = twins.random(1, len, DType::Bf16, Gaps::None);
        let hyper = Hyper {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step: 3,
            grad_scale: 0.7,
        };
        let norms = [Norm::of(&[&grad.host, &m.host]), Norm::of(&[&grad.device, &m.device])];
        let [want, got] = norms.each_ref().map(|norm| [norm.read() as f32]);
        twins.compare_values(format!("norm of twice {len}"), &got, &want, 1e-6);
        for clipped in [false, true] {
            let clip = |norm| clipped.then_some(Clip { norm, max: 0.5 });
            let (p, g, first, second) = (&mut param.host, &grad.host, &mut m.host, &mut v.host);
            adamw::step(p, g, first, second, Some(&mut copy.host), &hyper, clip(&norms[0]));
            let (p, g, first, second) = (&mut param.device, &grad.device, &mut m.device, &mut v.device);
            adamw::step(p, g, first, second, Some(&mut copy.device), &hyper, clip(&norms[1]));
            for (name, twin, limit) in [
                ("parameters", &param, 1e-6),
                ("first", &m, 1e-6),
                ("second", &v, 1e-6),
                ("copy", &copy, 3e-3),
            ] {
                twins.compare(format!("{name} of {len}, clipped {clipped}"), twin, limit);
            }
        }
        // A gradient that is not finite changes nothing.
        let mut bad = twins.random(1, len, DType::F32, Gaps::None);
        bad.device.write(&vec![f32::INFINITY; len]);
        let norm = Norm::of(&[&bad.device]);
        let clip = Some(Clip { norm: &norm, max: 0.5 });
        let (p, g, first, second) = (&mut param.device, &bad.device, &mut m.device, &mut v.device);
        adamw::step(p, g, first, second, Some(&mut copy.device), &hyper, clip);
        twins.compare(format!("parameters of {len} after an infinite gradient"), &param, 1e-6);
    }
}
