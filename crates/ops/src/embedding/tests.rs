use super::*;
use crate::{
    simd::on_every_isa,
    testing::{assert_close, assert_gradient, empty, random, strided, to_f64, weigh},
};
use keyfold_core::DType;
use keyfold_tensor::{Arena, bf16};

fn ids(tokens: usize, vocabulary: usize) -> Vec<u32> {
    random(9, tokens).iter().map(|x| (x.abs() * vocabulary as f32) as u32 % vocabulary as u32).collect()
}

#[test]
fn reference_gradient() {
    let (ids, width) = (ids(7, 3), 4);
    let (table, d_out) = (to_f64(&random(1, 3 * width)), to_f64(&random(2, ids.len() * width)));
    let gradient = reference::backward(&ids, &d_out, 3, width);
    assert_gradient("d_table", &gradient, &table, |table| {
        weigh(&reference::forward(&ids, table, width), &d_out)
    });
}

#[test]
fn forward_and_backward() {
    on_every_isa(|| {
        let arena = Arena::poisoned();
        for (tokens, vocabulary, width) in [(1, 1, 1), (63, 10, 17), (65, 50, 256), (400, 7, 100), (0, 3, 4)]
        {
            let ids = ids(tokens, vocabulary);
            let values = random(1, vocabulary * width);
            let mut out = empty(&arena, tokens, width);
            forward(&ids, &strided(&arena, vocabulary, width, &values), &mut out);
            assert_close("out", &out.to_vec(), &reference::forward(&ids, &to_f64(&values), width), 0.0);

            let rounded: Vec<f32> = values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            let mut table = arena.tensor(vocabulary, width, DType::Bf16);
            table.write(&values);
            forward(&ids, &table, &mut out);
            assert_close(
                "out of bf16",
                &out.to_vec(),
                &reference::forward(&ids, &to_f64(&rounded), width),
                0.0,
            );

            let d_out = random(2, tokens * width);
            let mut d_table = strided(&arena, vocabulary, width, &values);
            backward(&ids, &strided(&arena, tokens, width, &d_out), &mut d_table);
            let mut want = reference::backward(&ids, &to_f64(&d_out), vocabulary, width);
            want.iter_mut().zip(&values).for_each(|(want, before)| *want += f64::from(*before));
            assert_close("d_table", &d_table.to_vec(), &want, 1e-6);
        }
    });
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let arena = Arena::new();
    let (ids, d_out) = (ids(1000, 5), arena.tensor_of(1000, 70, &random(2, 70_000)));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        let mut d_table = arena.zeros(5, 70, DType::F32);
        pool.install(|| backward(&ids, &d_out, &mut d_table));
        d_table.to_vec()
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(5));
}

#[test]
#[should_panic(expected = "an id is not below 3")]
fn unknown_id() {
    let arena = Arena::new();
    forward(&[3], &arena.zeros(3, 2, DType::F32), &mut arena.zeros(1, 2, DType::F32));
}
