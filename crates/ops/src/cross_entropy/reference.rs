//! Token by token in double precision, with all logits of a token at hand.

use super::{IGNORE, Loss};

pub(super) struct Case<'a> {
    pub(super) width: usize,
    pub(super) targets: &'a [u32],
    pub(super) weights: &'a [f64],
}

impl Case<'_> {
    fn softmax(&self, x: &[f64], w: &[f64], token: usize) -> Vec<f64> {
        let x = &x[token * self.width..][..self.width];
        let logits: Vec<f64> =
            w.chunks_exact(self.width).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logits.iter().map(|l| (l - max).exp()).sum();
        logits.iter().map(|l| (l - max).exp() / total).collect()
    }

    /// Loss of each token.
    pub(super) fn losses(&self, x: &[f64], w: &[f64]) -> Vec<f64> {
        let loss = |t: usize| match self.targets[t] {
            target if target == IGNORE || self.weights[t] == 0.0 => 0.0,
            target => -self.softmax(x, w, t)[target as usize].ln(),
        };
        (0..self.targets.len()).map(loss).collect()
    }

    /// Whether the target is the argmax, of each token.
    pub(super) fn correct(&self, x: &[f64], w: &[f64]) -> Vec<bool> {
        let hit = |t: usize| {
            let p = self.softmax(x, w, t);
            let target = self.targets[t] as usize;
            target < p.len() && self.weights[t] != 0.0 && p.iter().all(|q| *q <= p[target])
        };
        (0..self.targets.len()).map(hit).collect()
    }

    pub(super) fn loss(&self, x: &[f64], w: &[f64]) -> Loss {
        let counted = |t: &usize| self.targets[*t] != IGNORE;
        let losses = self.losses(x, w);
        Loss {
            sum: losses.iter().zip(self.weights).map(|(l, w)| l * w).sum(),
            weight: (0..losses.len()).filter(counted).map(|t| self.weights[t]).sum(),
        }
    }

    /// Gradients of `scale * loss.sum` by `x` and by `w`.
    pub(super) fn gradients(&self, x: &[f64], w: &[f64], scale: f64) -> (Vec<f64>, Vec<f64>) {
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        for (t, target) in self.targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
            for (v, p) in self.softmax(x, w, t).into_iter().enumerate() {
                let d = scale * self.weights[t] * (p - f64::from(u8::from(v == *target as usize)));
                for i in 0..self.width {
                    dx[t * self.width + i] += d * w[v * self.width + i];
                    dw[v * self.width + i] += d * x[t * self.width + i];
                }
            }
        }
        (dx, dw)
    }
}
