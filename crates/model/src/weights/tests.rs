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
    let mut span = scope.span(&["q.weight", "k.weight"]).unwrap();
    span.value.write(&[1., 2., 3., 4., 5., 6., 7., 8., 9.]);
    assert_eq!(scope.get("k.weight").unwrap().value.to_vec(), [7., 8., 9.]);
    assert!(matches!(scope.span(&["k.weight", "q.weight"]), Err(WeightError::NotAdjacent(_))));
    assert!(matches!(scope.span(&["q.weight", "gain"]), Err(WeightError::NotAdjacent(_))));
    assert!(matches!(scope.span(&[]), Err(WeightError::NotAdjacent(_))));
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
