use super::*;

fn declared() -> Vec<Declared> {
    let mut list = Declarations::new(InitConfig { zero_output: true, ..InitConfig::default() });
    list.scoped("a.", |list| {
        list.matrix("q.weight", 2, 3)?;
        list.vector("gain", 3, Init::Ones)?;
        list.matrix("k.weight", 1, 3)
    })
    .unwrap();
    list.output("o.weight", 3, 2, 4).unwrap();
    list.finish()
}

#[test]
fn adjacent_matrices_are_one_without_a_copy() {
    let weights = Weights::allocate(&Arena::new(), declared(), DType::F32, true);
    let scope = weights.scope("a.");
    // A vector declared in between lies elsewhere, so the matrices stay neighbours.
    let joined = scope.project(&["q.weight", "k.weight"]).unwrap();
    let [both] = &joined.parts[..] else { panic!("{} parts", joined.parts.len()) };
    both.value.clone().write(&[1., 2., 3., 4., 5., 6., 7., 8., 9.]);
    assert_eq!(scope.get("k.weight").unwrap().value.to_vec(), [7., 8., 9.]);
    let reversed = scope.project(&["k.weight", "q.weight"]).unwrap();
    assert_eq!((reversed.parts.len(), reversed.outputs()), (2, 3));
    assert!(matches!(scope.project(&["q.weight", "none"]), Err(WeightError::Unknown(_))));
    assert!(matches!(scope.get("missing"), Err(WeightError::Unknown(name)) if name == "a.missing"));
}

#[test]
fn initial_values_follow_the_declaration_and_the_seed() {
    let values = |seed| {
        let weights = Weights::allocate(&Arena::poisoned(), declared(), DType::F32, false);
        weights.initialise(seed);
        weights.iter().map(|(_, param)| param.value.to_vec()).collect::<Vec<_>>()
    };
    let [q, gain, k, o] = &values(1)[..] else { panic!("four weights") };
    assert_eq!((gain, o), (&vec![1.0; 3], &vec![0.0; 6]));
    assert!(q.iter().chain(k).all(|x| x.is_finite() && *x != 0.0));
    assert_eq!(values(1), values(1));
    assert_ne!(values(1)[0], values(2)[0]);
    assert_ne!(q[..3], k[..]);
}

#[test]
fn initial_standard_deviation_is_the_declared_one() {
    for projection_std in [None, Some(0.05)] {
        let mut list = Declarations::new(InitConfig { projection_std, ..InitConfig::default() });
        list.table("table", 300, 300).unwrap();
        list.matrix("inner", 400, 225).unwrap();
        list.output("outer", 400, 225, 8).unwrap();
        let weights = Weights::allocate(&Arena::new(), list.finish(), DType::F32, false);
        weights.initialise(0);
        let inner = projection_std.unwrap_or(1.0 / 15.0) as f32;
        for ((declared, param), want) in weights.iter().zip([0.02, inner, inner / 4.0]) {
            let values = param.value.to_vec();
            let std = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
            assert!((std / want - 1.0).abs() < 0.02, "{}: {std}", declared.name);
        }
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    let mut list = Declarations::new(InitConfig::default());
    assert!(list.matrix("w", usize::MAX / 2, 3).is_err());
    assert!(list.matrix("w", 1 << 40, 1 << 30).is_err());
}

#[test]
fn projections_compute_the_same_in_one_piece_and_in_two() {
    use crate::tape::Tape;
    use keyfold_ops::linear;
    let arena = Arena::poisoned();
    let mut list = Declarations::new(InitConfig::default());
    for name in ["q", "k"] {
        list.matrix(&format!("{name}.weight"), 3, 5).unwrap();
    }
    for name in ["q", "k"] {
        list.vector(&format!("{name}.bias"), 3, Init::Ones).unwrap();
    }
    let weights = Weights::allocate(&arena, list.finish(), DType::F32, true);
    weights.initialise(3);
    let scope = weights.scope("");
    let names = |suffix: &'static str| ["q", "k"].map(|name| format!("{name}.{suffix}"));
    let (matrices, biases) = (names("weight"), names("bias"));
    let [matrices, biases] = [&matrices, &biases].map(|names| [names[0].as_str(), names[1].as_str()]);
    let whole = scope.project_biased(&matrices, &biases).unwrap();
    let parts = matrices.map(|name| scope.get(name).unwrap()).to_vec();
    let mut split = Projection { parts, ..whole.clone() };
    assert_eq!((whole.parts.len(), split.parts.len()), (1, 2));
    let values: Vec<f32> = (0..35).map(|i| (i as f32 * 0.7).sin()).collect();
    let run = |projection: &Projection, weights: &mut Weights| {
        weights.zero_grad();
        let mut tape = Tape::recording(&arena, DType::F32);
        let x = tape.leaf(arena.tensor_of(7, 5, &values));
        let y = tape.project(&x, projection);
        let out = y.value().to_vec();
        let seed = arena.tensor_of(7, 6, &(0..42).map(|i| (i as f32).cos()).collect::<Vec<_>>());
        let dx = tape.backward(vec![(y, seed)]).of(&x).unwrap().to_vec();
        let grads = [&weights.matrices, &weights.vectors].map(|flat| flat.grad.as_ref().unwrap().to_vec());
        (out, dx, grads)
    };
    let mut all = weights.clone();
    let want = run(&whole, &mut all);
    let got = run(&split, &mut all);
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(near(&want.0, &got.0) && near(&want.1, &got.1));
    assert!(near(&want.2[0], &got.2[0]) && near(&want.2[1], &got.2[1]));
    let mut plain = arena.tensor(7, 6, DType::F32);
    linear::forward(&arena.tensor_of(7, 5, &values), &whole.parts[0].value, None, &mut plain, false);
    let biased: Vec<f32> = plain.to_vec().iter().map(|y| y + 1.0).collect();
    assert!(near(&want.0, &biased));
    split.bias = None;
    assert_ne!(run(&split, &mut all).0, want.0);
}
