use super::*;
use keyfold_core::DType;

#[test]
fn views_share_memory() {
    let arena = Arena::new();
    let whole = arena.tensor_of(2, 4, &[0., 1., 2., 3., 4., 5., 6., 7.]);
    let mut part = whole.columns(1, 2);
    assert_eq!(part.to_vec(), [1., 2., 5., 6.]);
    part.write(&[9., 9., 8., 8.]);
    assert_eq!(whole.to_vec(), [0., 9., 9., 3., 4., 8., 8., 7.]);
    part.fill_zero();
    assert_eq!(whole.to_vec(), [0., 0., 0., 3., 4., 0., 0., 7.]);
    assert_eq!(whole.row_range(1, 1).to_vec(), [4., 0., 0., 7.]);
    assert!(!part.is_contiguous() && !whole.is_unique());
}

#[test]
fn bf16_rounds_on_write() {
    let mut tensor = Arena::new().tensor(1, 2, DType::Bf16);
    tensor.write(&[1.0, 1.0 + 1.0 / 512.0]);
    assert_eq!(tensor.to_vec(), [1.0, 1.0]);
}

#[test]
fn freed_memory_is_used_again_and_counted() {
    let arena = Arena::new();
    let first = arena.tensor(10, 1024, DType::F32);
    let address = first.as_ptr();
    let stats = arena.stats();
    drop(first);
    assert_eq!(arena.stats().live, 0);
    let second = arena.tensor(5, 2048, DType::F32);
    assert_eq!(second.as_ptr(), address);
    assert_eq!(arena.stats(), stats);
    drop(second);
    arena.trim();
    assert_eq!(arena.stats().reserved, 0);
}

#[test]
fn poisoned_arena_hands_out_nan() {
    let arena = Arena::poisoned();
    assert!(arena.tensor(3, 5, DType::F32).to_vec().iter().all(|x| x.is_nan()));
    assert!(arena.zeros(3, 5, DType::F32).to_vec().iter().all(|x| *x == 0.0));
}

#[test]
fn bytes_of_views_are_their_rows() {
    let arena = Arena::poisoned();
    for dtype in [DType::F32, DType::Bf16] {
        let mut view = arena.tensor(3, 5, dtype).columns(1, 3);
        view.write(&[1., 2., 3., 4., 5., 6., 7., 8., 9.]);
        let copy = view.copied_to(&Arena::poisoned());
        assert!(copy.is_contiguous());
        assert_eq!(copy.to_vec(), view.to_vec());
        let mut other = arena.tensor(3, 7, dtype).columns(2, 3);
        other.write_bytes(&view.to_bytes());
        assert_eq!(other.to_vec(), view.to_vec());
    }
}

#[test]
fn a_device_that_is_not_there_says_why() {
    let error = Arena::on(Device::Cuda(99)).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("device cuda:99: "), "{error}");
}

#[test]
fn neighbours_join_and_others_do_not() {
    let arena = Arena::new();
    let all = arena.tensor_of(1, 12, &(0..12).map(|x| x as f32).collect::<Vec<_>>());
    let part = |start, rows: usize| all.columns(start, rows * 3).reshape(rows, 3);
    let joined = part(0, 1).joined(&part(3, 2)).unwrap();
    assert_eq!((joined.rows(), joined.cols(), joined.is_contiguous()), (3, 3, true));
    assert_eq!(joined.to_vec(), all.to_vec()[..9]);
    assert!(part(3, 2).joined(&part(0, 1)).is_none());
    assert!(part(0, 1).joined(&part(6, 1)).is_none());
    assert!(part(0, 1).joined(&arena.tensor(1, 3, DType::F32)).is_none());
    assert!(part(0, 2).joined(&all.columns(6, 4).reshape(2, 2)).is_none());
}

#[test]
fn foreign_memory_lives_as_long_as_its_tensors() {
    let owner = std::sync::Arc::new(vec![1f32, 2.0, 3.0, 4.0]);
    let ptr = std::ptr::NonNull::new(owner.as_ptr() as *mut u8).unwrap();
    // SAFETY: four floats that the vector keeps; nobody writes.
    let tensor = unsafe { Tensor::foreign(ptr, owner.clone(), 2, 2, DType::F32) };
    let row = tensor.row_range(1, 1);
    drop(tensor);
    assert_eq!(std::sync::Arc::strong_count(&owner), 2);
    assert_eq!(row.to_vec(), [3.0, 4.0]);
    drop(row);
    assert_eq!(std::sync::Arc::strong_count(&owner), 1);
}
