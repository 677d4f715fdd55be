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
    assert_eq!((values.cols(), [scales.rows(), scales.cols()], rows.cols()), (200, [4, 3], 208));
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
        store(&x, &at(&[2, 0]), plane, SCALE_BLOCK);
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
fn scales_lie_behind_all_rows_block_by_block() {
    let (memory, elements) = cache([64, 136], 3);
    let mut x = Arena::new().tensor(3, 136, DType::F32);
    // The largest of block b of row r is 448 * 2^(r + 3b), of the last block, which is not whole, too.
    let size = |row: i32, block: i32| 448.0 * 2f32.powi(row + 3 * block);
    let numbers: Vec<f32> = (0..3 * 136).map(|i| size(i / 136, i % 136 / 64)).collect();
    x.write(&numbers);
    let [values, scales] = Rows::split(&memory, elements);
    let plane = values.columns(64, 136);
    let plane = Rows { values: &plane, scales: &scales };
    assert_eq!(plane.block(), 1);
    store(&x, &at(&[0, 1, 2]), plane, SCALE_BLOCK);
    let bytes = memory.to_bytes();
    let (elements, behind) = bytes.split_at(3 * 200);
    assert!(elements.chunks(200).all(|row| row[64..].iter().all(|x| *x == e4m3::from_f32(448.0))));
    assert_eq!(behind[3..12], [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|exponent| (exponent.min(7) + 127) as u8));
    assert_eq!(plane.row(2)[..3], [size(2, 0); 3]);
    let (same, scales) = rows_of(&memory, 200);
    assert_eq!(
        (same.address(), scales.map(|scales| scales.address())),
        (memory.address(), Some(memory.address() + 600))
    );
    let (same, scales) = rows_of(&x, 136);
    assert_eq!((same.address(), scales.is_none()), (x.address(), true));
}

#[test]
fn heads_of_256_have_one_scale() {
    let widths = [0, 48, 64, 127, 128, 192, 256, 384, 512, 576];
    assert_eq!(widths.map(sharing), [64, 64, 64, 64, 64, 64, 256, 64, 64, 64]);
}

#[test]
fn blocks_that_share_a_scale_have_that_of_the_largest() {
    let (rows, elements) = cache([320, 64], 1);
    let [values, scales] = Rows::split(&rows, elements);
    let mut x = Arena::new().tensor(1, elements, DType::F32);
    // Largest values of the blocks; the last two are what is left of 128 columns, and of the row.
    let most = [1.0, 900.0, 0.1, 448.0, 3.0, 1e-3];
    let numbers: Vec<f32> = (0..elements).map(|i| most[i / 64] * (1.0 - (i % 64) as f32 / 100.0)).collect();
    x.write(&numbers);
    let plane = Rows { values: &values, scales: &scales };
    store(&x, &at(&[0]), plane, 2 * SCALE_BLOCK);
    let two = |exponent: i32| (exponent + 127) as u8;
    assert_eq!(scales.to_bytes()[..6], [two(2), two(2), two(0), two(0), two(-7), two(-7)]);
    let mut back = Arena::new().tensor(1, elements, DType::F32);
    load(plane, &at(&[0]), &mut back);
    for (i, (x, y)) in numbers.iter().zip(back.to_vec()).enumerate() {
        assert!((x - y).abs() <= x.abs() / 16.0 + 2f32.powi(-17), "column {i}: {x} became {y}");
    }
}

#[test]
#[should_panic(expected = "96 columns of one scale, a multiple of 64 was expected")]
fn scales_of_broken_blocks_are_refused() {
    let (rows, elements) = cache([64, 64], 1);
    let [values, scales] = Rows::split(&rows, elements);
    let x = Arena::new().tensor(1, 128, DType::F32);
    store(&x, &at(&[0]), Rows { values: &values, scales: &scales }, 96);
}

#[test]
fn what_is_no_number_stays_so_and_nothing_else_changes() {
    let (rows, elements) = cache([64, 64], 1);
    let [values, scales] = Rows::split(&rows, elements);
    let plane = values.columns(64, 64);
    let before = values.columns(0, 64).to_bytes();
    let mut x = Arena::new().tensor(1, 64, DType::F32);
    let mut numbers = vec![3.0; 64];
    (numbers[5], numbers[9]) = (f32::NAN, f32::INFINITY);
    x.write(&numbers);
    let plane = Rows { values: &plane, scales: &scales };
    store(&x, &at(&[0]), plane, SCALE_BLOCK);
    let mut back = Arena::new().tensor(1, 64, DType::F32);
    load(plane, &at(&[0]), &mut back);
    let back = back.to_vec();
    assert!(back[5].is_nan());
    assert_eq!((back[9], back[0]), (57344.0, 3.0));
    assert_eq!(values.columns(0, 64).to_bytes(), before);
}

#[test]
#[should_panic(expected = "a multiple of 64 was expected")]
fn columns_within_a_block_are_refused() {
    let (rows, elements) = cache([96, 32], 1);
    let [values, scales] = Rows::split(&rows, elements);
    let plane = values.columns(96, 32);
    let x = Arena::new().tensor(1, 32, DType::F32);
    store(&x, &at(&[0]), Rows { values: &plane, scales: &scales }, SCALE_BLOCK);
}

#[test]
#[should_panic(expected = "values and scales of different rows")]
fn scales_of_other_rows_are_refused() {
    let (rows, elements) = cache([64, 64], 2);
    let [values, scales] = Rows::split(&rows, elements);
    Rows { values: &values.row_range(0, 1), scales: &scales }.block();
}

#[test]
#[should_panic(expected = "values and scales of different rows")]
fn scales_of_another_cache_are_refused() {
    let [a, b] = [(); 2].map(|()| cache([64, 64], 2));
    let ([values, _], [_, scales]) = (Rows::split(&a.0, a.1), Rows::split(&b.0, b.1));
    Rows { values: &values, scales: &scales }.block();
}

#[test]
#[should_panic(expected = "a place is not below 1")]
fn places_beyond_the_cache_are_refused() {
    let (rows, elements) = cache([64, 64], 1);
    let [values, scales] = Rows::split(&rows, elements);
    let x = Arena::new().tensor(1, 128, DType::F32);
    store(&x, &at(&[1]), Rows { values: &values, scales: &scales }, SCALE_BLOCK);
}
