use super::*;
use keyfold_core::row_width;
use keyfold_tensor::{Arena, e4m3};

fn cache(widths: [usize; 2], places: usize) -> (Tensor, usize) {
    let elements = widths[0] + widths[1];
    (Arena::new().tensor(places, row_width(elements, DType::Fp8), DType::Fp8), elements)
}

fn at(places: &[u32]) -> Indices {
    Indices::new(&Arena::new(), places.to_vec())
}

#[test]
fn all_values_survive_and_neighbours_are_found() {
    for bits in 0..=255u8 {
        let value = e4m3::to_f32(bits);
        let back = e4m3::to_f32(e4m3::from_f32(value));
        assert!(back == value || (back.is_nan() && value.is_nan()), "{bits}: {value} came back as {back}");
    }
    let cases = [
        (1.0, 1.0),
        (1.0625, 1.0),
        (1.1875, 1.25),
        (500.0, 448.0),
        (-1e9, -448.0),
        (f32::INFINITY, 448.0),
        (1e-9, 0.0),
    ];
    for (x, want) in cases {
        assert_eq!(e4m3::to_f32(e4m3::from_f32(x)), want, "{x}");
    }
    // Half of the smallest value goes to zero, a little more to it.
    let least = 2f32.powi(-9);
    assert_eq!(e4m3::to_f32(e4m3::from_f32(0.5 * least)), 0.0);
    assert_eq!(e4m3::to_f32(e4m3::from_f32(0.51 * least)), least);
    // Carries into the next exponent, out of the subnormal ones too.
    assert_eq!(e4m3::to_f32(e4m3::from_f32(1.99)), 2.0);
    assert_eq!(e4m3::to_f32(e4m3::from_f32(7.9 * least)), 8.0 * least);
}

#[test]
fn blocks_of_any_size_keep_four_significant_bits() {
    let (rows, elements) = cache([128, 72], 3);
    let [values, scales] = Rows::split(&rows, elements);
    assert_eq!((values.cols(), scales.cols(), rows.cols()), (200, 8, 208));
    for (start, width) in [(0, 128), (128, 72)] {
        let plane = values.columns(start, width);
        let plane = Rows { values: &plane, scales: &scales };
        let arena = Arena::new();
        let mut x = arena.tensor(2, width, DType::F32);
        // Each block is of another size, down to where f16 ends.
        let numbers: Vec<f32> = (0..2 * width)
            .map(|i| ((i * 7919 % 97) as f32 / 48.5 - 1.0) * 10f32.powi(3 - 2 * (i as i32 / 64)))
            .collect();
        x.write(&numbers);
        store(&x, &at(&[2, 0]), plane);
        let mut back = arena.tensor(2, width, DType::F32);
        load(plane, &at(&[2, 0]), &mut back);
        for (row, (block, got)) in numbers.chunks(width).zip(back.to_vec().chunks(width)).enumerate() {
            for (block, got) in block.chunks(SCALE_BLOCK).zip(got.chunks(SCALE_BLOCK)) {
                let most = block.iter().fold(0f32, |most, x| x.abs().max(most));
                for (x, y) in block.iter().zip(got) {
                    let limit = (x.abs() / 16.0).max(most / 448.0 / 512.0).max(2f32.powi(-34));
                    assert!((x - y).abs() <= limit, "row {row}: {x} became {y} in a block up to {most}");
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_so_and_nothing_else_changes() {
    let (rows, elements) = cache([64, 64], 1);
    let [values, scales] = Rows::split(&rows, elements);
    let plane = values.columns(64, 64);
    let before = rows.columns(0, 64).to_bytes();
    let mut x = Arena::new().tensor(1, 64, DType::F32);
    let mut numbers = vec![3.0; 64];
    (numbers[5], numbers[9]) = (f32::NAN, f32::INFINITY);
    x.write(&numbers);
    let plane = Rows { values: &plane, scales: &scales };
    store(&x, &at(&[0]), plane);
    let mut back = Arena::new().tensor(1, 64, DType::F32);
    load(plane, &at(&[0]), &mut back);
    let back = back.to_vec();
    assert!(back[5].is_nan());
    assert_eq!((back[9], back[0]), (57344.0, 3.0));
    assert_eq!(rows.columns(0, 64).to_bytes(), before);
}

#[test]
#[should_panic(expected = "a multiple of 64 was expected")]
fn columns_within_a_block_are_refused() {
    let (rows, elements) = cache([96, 32], 1);
    let [values, scales] = Rows::split(&rows, elements);
    let plane = values.columns(96, 32);
    let x = Arena::new().tensor(1, 32, DType::F32);
    store(&x, &at(&[0]), Rows { values: &plane, scales: &scales });
}

#[test]
#[should_panic(expected = "a place is not below 1")]
fn places_beyond_the_cache_are_refused() {
    let (rows, elements) = cache([64, 64], 1);
    let [values, scales] = Rows::split(&rows, elements);
    let x = Arena::new().tensor(1, 128, DType::F32);
    store(&x, &at(&[1]), Rows { values: &values, scales: &scales });
}
