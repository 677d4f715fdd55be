use super::*;
use crate::weights::Param;
use keyfold_core::DType;

fn param(arena: &Arena, rows: usize, cols: usize, values: &[f32]) -> Param {
    Param { value: arena.tensor_of(rows, cols, values), grad: Some(arena.zeros(rows, cols, DType::F32)) }
}

#[test]
fn gradients_that_meet_are_added_and_shared_ones_are_not_disturbed() {
    // y = W x, z = V x, and x itself: dx is the sum of three ways.
    let arena = Arena::poisoned();
    let (w, v) = (param(&arena, 1, 2, &[2.0, 3.0]), param(&arena, 1, 2, &[5.0, 7.0]));
    let mut tape = Tape::recording(&arena, DType::F32);
    let x = tape.leaf(arena.tensor_of(1, 2, &[1.0, -1.0]));
    let (y, z) = (tape.linear(&x, &w), tape.linear(&x, &v));
    let seed = arena.tensor_of(1, 2, &[100.0, 200.0]);
    let one = || arena.tensor_of(1, 1, &[1.0]);
    let mut gradients = tape.backward(vec![(x.clone(), seed.clone()), (y, one()), (z, one())]);
    assert_eq!(gradients.of(&x).unwrap().to_vec(), [107.0, 210.0]);
    assert_eq!(seed.to_vec(), [100.0, 200.0]);
    assert_eq!(w.grad.unwrap().to_vec(), [1.0, -1.0]);
}

#[test]
fn a_part_that_nothing_uses_has_zero_gradient() {
    let arena = Arena::poisoned();
    let w = param(&arena, 3, 1, &[1.0, 1.0, 1.0]);
    let mut tape = Tape::recording(&arena, DType::F32);
    let x = tape.leaf(arena.tensor_of(1, 1, &[4.0]));
    let whole = tape.linear(&x, &w);
    let [first, _unused] = tape.split(whole, [1, 2]);
    let seed = arena.tensor_of(1, 1, &[3.0]);
    let mut gradients = tape.backward(vec![(first, seed)]);
    assert_eq!(w.grad.unwrap().to_vec(), [12.0, 0.0, 0.0]);
    assert_eq!(gradients.of(&x).unwrap().to_vec(), [3.0]);
}

#[test]
fn an_inference_tape_keeps_nothing() {
    let arena = Arena::new();
    let w = param(&arena, 256, 256, &vec![0.1; 256 * 256]);
    let live = arena.stats().live;
    let mut tape = Tape::inference(&arena);
    let mut x = tape.leaf(arena.zeros(64, 256, DType::F32));
    let one = arena.stats().live - live;
    for _ in 0..10 {
        x = tape.linear(&x, &w);
    }
    assert_eq!(arena.stats().live - live, one);
    assert!(arena.stats().peak - live <= 2 * one);
}

#[test]
fn memory_is_given_back_while_the_backward_pass_runs() {
    let arena = Arena::new();
    let w = param(&arena, 64, 64, &vec![0.1; 64 * 64]);
    let live = arena.stats().live;
    let mut tape = Tape::recording(&arena, DType::F32);
    let x = tape.leaf(arena.zeros(16, 64, DType::F32));
    let mut y = x.clone();
    for _ in 0..5 {
        y = tape.linear(&y, &w);
    }
    let seed = arena.zeros(16, 64, DType::F32);
    let gradients = tape.backward(vec![(y, seed)]);
    drop((gradients, x, tape));
    assert_eq!(arena.stats().live, live);
}

#[test]
fn a_watched_tape_names_the_first_op_that_is_not_finite() {
    let arena = Arena::poisoned();
    let (fine, huge) = (param(&arena, 2, 2, &[1.0, 2.0, 3.0, 4.0]), param(&arena, 1, 2, &[f32::MAX; 2]));
    let run = |second: &Param, seed: f32| {
        let watch = Watch::new(&arena, Vec::new());
        let mut tape = Tape::recording(&arena, DType::F32).watched(&watch);
        let x = tape.leaf(arena.tensor_of(1, 2, &[1.0, 1.0]));
        tape.enter(Some(0));
        let both = tape.linear(&x, &fine);
        let [one, _unused] = tape.split(both, [1, 1]);
        let y = tape.scale(&one, 2.0);
        tape.enter(Some(1));
        let z = tape.linear(&x, second);
        tape.enter(None);
        let [dy, dz] =
            [&y, &z].map(|var| arena.tensor_of(1, var.value().cols(), &vec![seed; var.value().cols()]));
        tape.backward(vec![(y, dy), (z, dz)]);
        watch.culprit()
    };
    assert_eq!(run(&fine, 1.0), None);
    let forward = Culprit { op: "linear", layer: Some(1), pass: Pass::Forward };
    assert_eq!(run(&huge, 1.0), Some(forward));
    assert_eq!(forward.to_string(), "linear of layer 1 (forward)");
    let backward = run(&fine, f32::INFINITY).unwrap();
    assert_eq!(backward, Culprit { op: "linear", layer: Some(1), pass: Pass::Backward });
}

#[test]
fn a_watched_tape_looks_into_checkpointed_layers() {
    let arena = Arena::poisoned();
    let run = |weight: f32, gradient: f32| {
        let w = param(&arena, 1, 1, &[weight]);
        let watch = Watch::new(&arena, w.grad.iter().cloned().collect());
        let mut tape = Tape::recording(&arena, DType::F32).watched(&watch);
        let x = tape.leaf(arena.tensor_of(1, 1, &[1e10]));
        tape.enter(Some(7));
        let (x, update) = tape.checkpoint(x, None, move |tape, x, _| {
            let half = tape.scale(&x, 0.5);
            let update = tape.linear(&half, &w);
            (half, update)
        });
        tape.enter(None);
        let seed = || arena.tensor_of(1, 1, &[gradient]);
        tape.backward(vec![(x, seed()), (update, seed())]);
        watch.culprit().map(|culprit| culprit.to_string())
    };
    assert_eq!(run(1e30, 0.0).as_deref(), Some("linear of layer 7 (forward)"));
    assert_eq!(run(1.0, 1e15).as_deref(), Some("linear of layer 7 (backward)"));
    assert_eq!(run(1.0, 1.0), None);
}
