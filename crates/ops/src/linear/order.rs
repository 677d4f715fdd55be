//! Which products of one row may share a kernel, whose blocks wait for each other only by the words that they read.

use keyfold_core::DType;
use keyfold_tensor::Tensor;
use std::ops::Range;

/// The products of one kernel.
#[derive(Debug, Default)]
pub(super) struct Order {
    steps: Vec<Step>,
}

/// What a product reads and writes.
#[derive(Debug)]
struct Step {
    /// Bytes of the input and of the output.
    x: Range<u64>,
    out: Range<u64>,
    dtype: DType,
    gated: bool,
    /// Which product made the input; none where it was there before.
    source: Option<usize>,
}

impl Order {
    /// Adds the product of `x` into `out`, both of one row, unless it must not follow the others in one kernel.
    pub(super) fn admits(&mut self, x: &Tensor, out: &Tensor, gated: bool) -> bool {
        let x = span(x);
        // The last that wrote there.
        let source = self.steps.iter().rposition(|before| overlap(&before.out, &x));
        let step = Step { x, out: span(out), dtype: out.dtype(), gated, source };
        let admitted = self.admits_step(&step);
        if admitted {
            self.steps.push(step);
        }
        admitted
    }

    /// Which product made the input of number `at`, and how many bytes before it that one's output begins.
    pub(super) fn source(&self, at: usize) -> Option<(usize, u64)> {
        let step = &self.steps[at];
        step.source.map(|source| (source, step.x.start - self.steps[source].out.start))
    }

    /// Whether others may read what number `at` makes, as words: a bf16 and the launch's number.
    pub(super) fn is_input(&self, at: usize) -> bool {
        self.steps[at].dtype == DType::Bf16
    }

    fn admits_step(&self, step: &Step) -> bool {
        // Words are read 8 at a time.
        let reads = step.source.is_none_or(|at| {
            let out = &self.steps[at].out;
            let within = out.start <= step.x.start && step.x.end <= out.end;
            self.is_input(at) && within && (step.x.start - out.start).is_multiple_of(16)
        });
        // A sum belongs to the same thread each time; rows of gates are dealt out differently.
        let writes = self.steps.iter().all(|before| {
            let sum = before.out == step.out && before.dtype == step.dtype && !before.gated && !step.gated;
            !overlap(&before.out, &step.out) || sum
        });
        // Inputs that were there before are read from where they are.
        let unread = |(at, before): (usize, &Step)| {
            before.source.is_some() || !overlap(&before.x, &step.out) || self.waits_for(step, at)
        };
        reads && writes && self.steps.iter().enumerate().all(unread)
    }

    /// Whether blocks write what `step` makes only when all of number `at` has been made, and its input read by all.
    fn waits_for(&self, step: &Step, at: usize) -> bool {
        let mut step = step;
        while let Some(source) = step.source {
            if source == at {
                return self.steps[at].out == step.x;
            }
            step = &self.steps[source];
        }
        false
    }
}

/// The bytes of a tensor of one row.
fn span(tensor: &Tensor) -> Range<u64> {
    tensor.address()..tensor.address() + (tensor.cols() * tensor.dtype().bytes()) as u64
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::Order;
    use keyfold_core::DType;
    use keyfold_tensor::{Arena, Tensor};

    /// How many of some products, each of an input into an output, with a gate or not, find place in one kernel.
    fn together(products: &[(&Tensor, &Tensor, bool)]) -> usize {
        let mut order = Order::default();
        products.iter().take_while(|(x, out, gated)| order.admits(x, out, *gated)).count()
    }

    fn rows<const N: usize>(cols: usize) -> [Tensor; N] {
        let arena = Arena::new();
        std::array::from_fn(|_| arena.tensor(1, cols, DType::Bf16))
    }

    #[test]
    fn a_layer_is_one_kernel() {
        let [attended, hidden, gated, latents, queries] = rows(64);
        let query = latents.columns(0, 32);
        let layer = [
            (&attended, &hidden, false),
            (&hidden, &gated, true),
            (&gated, &hidden, false),
            (&hidden, &latents, false),
            (&query, &queries, false),
        ];
        assert_eq!(together(&layer), 5);
    }

    #[test]
    fn inputs_lie_within_what_one_product_made() {
        let [x, out] = rows(64);
        let made =
            |input: &Tensor| together(&[(&x, &out.columns(0, 32), false), (input, &x.columns(0, 8), false)]);
        assert_eq!(
            made(&out.columns(32, 32)),
            1,
            "an input beside it, and an output that others may yet have to read"
        );
        let [x, both, next] = rows(64);
        let (low, high) = (both.columns(0, 32), both.columns(32, 32));
        let halves =
            |input: &Tensor| together(&[(&x, &low, false), (&x, &high, false), (input, &next, false)]);
        assert_eq!(halves(&low), 3);
        assert_eq!(halves(&high.columns(8, 16)), 3);
        assert_eq!(halves(&both), 2, "of two products");
        assert_eq!(halves(&high.columns(4, 16)), 2, "not at 16 bytes");
        assert_eq!(
            together(&[(&x, &low, false), (&both.columns(0, 40), &next, false)]),
            1,
            "of one and of before"
        );
    }

    #[test]
    fn sources_are_the_last_that_wrote() {
        let [x, out, next] = rows(64);
        let mut order = Order::default();
        for (x, out) in [(&x, &out), (&x, &next), (&next, &out), (&out.columns(8, 16), &next.columns(0, 8))] {
            order.admits(x, out, false);
        }
        assert_eq!([0, 1, 2].map(|at| order.source(at)), [None, None, Some((1, 0))]);
        let [last] = rows(64);
        assert!(order.admits(&out.columns(8, 16), &last, false));
        assert_eq!(order.source(3), Some((2, 16)));
    }

    #[test]
    fn f32_outputs_are_not_inputs() {
        let [x, next] = rows(64);
        let out = Arena::new().tensor(1, 64, DType::F32);
        assert_eq!(together(&[(&x, &out, false), (&x, &next, false)]), 2);
        assert_eq!(together(&[(&x, &out, false), (&out, &next, false)]), 1);
    }

    #[test]
    fn outputs_are_apart_or_the_same_sum() {
        let [x, out, y] = rows(64);
        let second = |out: &Tensor, gates: [bool; 2], second: &Tensor| {
            together(&[(&x, out, gates[0]), (&y, second, gates[1])])
        };
        assert_eq!(second(&out, [false, false], &out), 2);
        assert_eq!(second(&out, [true, false], &out), 1, "rows of gates belong to other threads");
        assert_eq!(second(&out, [false, true], &out), 1);
        assert_eq!(second(&out.columns(0, 32), [false, false], &out.columns(32, 32)), 2);
        assert_eq!(second(&out.columns(0, 40), [false, false], &out.columns(32, 32)), 1);
        assert_eq!(second(&out, [false, false], &out.columns(0, 32)), 1);
        let wide = Arena::new().tensor(1, 64, DType::F32);
        assert_eq!(second(&wide, [false, false], &wide), 2);
    }

    #[test]
    fn inputs_of_before_are_overwritten_once_all_have_read_them() {
        let [x, up, down, other] = rows(64);
        assert_eq!(together(&[(&x, &up, false), (&up, &x, false)]), 2, "of all that was made of it");
        assert_eq!(together(&[(&x, &up, false), (&up, &down, false), (&down.columns(0, 8), &x, false)]), 3);
        assert_eq!(together(&[(&x, &up, false), (&up.columns(0, 32), &x, false)]), 1, "of a part of it");
        assert_eq!(together(&[(&x, &up, false), (&up.columns(0, 32), &down, false), (&down, &x, false)]), 2);
        assert_eq!(together(&[(&x, &up, false), (&other, &x, false)]), 1, "of something else");
        assert_eq!(together(&[(&x, &up, false), (&other, &x.columns(56, 8), false)]), 1);
        assert_eq!(
            together(&[(&x, &up, false), (&x, &down, false), (&up, &x, false)]),
            2,
            "read by another, too"
        );
    }
}
