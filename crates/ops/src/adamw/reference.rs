//! Element by element in double precision.

use super::Hyper;

pub(super) fn step(param: &mut [f64], grad: &[f64], m: &mut [f64], v: &mut [f64], hyper: &Hyper) {
    let correction = |beta: f64| 1.0 - beta.powf(hyper.step as f64);
    for i in 0..param.len() {
        let g = grad[i] * hyper.grad_scale;
        param[i] -= hyper.lr * hyper.weight_decay * param[i];
        m[i] = hyper.beta1 * m[i] + (1.0 - hyper.beta1) * g;
        v[i] = hyper.beta2 * v[i] + (1.0 - hyper.beta2) * g * g;
        let below = (v[i] / correction(hyper.beta2)).sqrt() + hyper.eps;
        param[i] -= hyper.lr * m[i] / correction(hyper.beta1) / below;
    }
}
