use super::{reference, split::Product, view::Element, *};
use crate::testing::{assert_close, random};
use half::bf16;
use pulp::Arch;

/// Where a product is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Path {
    Best,
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Parts),
}

impl Path {
    /// Error allowed relative to the largest output of operands in -1..1 and k in the hundreds.
    fn tolerance(self) -> f64 {
        match self {
            Self::Best | Self::Scalar => 2e-6,
            #[cfg(target_arch = "x86_64")]
            Self::Amx(amx::Parts::Three) => 2e-6,
            #[cfg(target_arch = "x86_64")]
            Self::Amx(amx::Parts::Two) => 5e-5,
            #[cfg(target_arch = "x86_64")]
            Self::Amx(amx::Parts::One) => 2e-2,
        }
    }

    fn run<B: Element>(self, product: Product<'_, B>) {
        match self {
            Self::Best => f32::run(Arch::new(), product),
            Self::Scalar => f32::run(Arch::Scalar, product),
            #[cfg(target_arch = "x86_64")]
            Self::Amx(parts) => amx::run(product, parts),
        }
    }
}

fn paths() -> Vec<Path> {
    let mut paths = vec![Path::Best, Path::Scalar];
    paths.extend(amx_paths());
    paths
}

#[cfg(target_arch = "x86_64")]
fn amx_paths() -> Vec<Path> {
    if amx::available() {
        vec![Path::Amx(amx::Parts::Two), Path::Amx(amx::Parts::One)]
    } else {
        println!("skipped: this machine has no AMX");
        vec![]
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amx_paths() -> Vec<Path> {
    println!("skipped: this machine has no AMX");
    vec![]
}

/// A matrix with gaps of NaN between its rows, stored transposed or not, and its values row by row.
struct Operand<E> {
    store: Vec<E>,
    rows: usize,
    cols: usize,
    transposed: bool,
    values: Vec<f64>,
}

const GAP: usize = 3;

impl<E: Element> Operand<E> {
    fn new(seed: u64, rows: usize, cols: usize, transposed: bool, narrow: impl Fn(f32) -> E) -> Self {
        let (lines, width) = if transposed { (cols, rows) } else { (rows, cols) };
        let mut store = vec![narrow(f32::NAN); lines * (width + GAP)];
        let mut values = vec![0.0; rows * cols];
        for (i, x) in random(seed, rows * cols).into_iter().enumerate() {
            let (line, at) = (i / width, i % width);
            let x = narrow(x);
            store[line * (width + GAP) + at] = x;
            values[if transposed { at * cols + line } else { i }] = f64::from(x.widen());
        }
        Self { store, rows, cols, transposed, values }
    }

    fn view(&self) -> View<'_, E> {
        // SAFETY: the store holds the lines.
        unsafe {
            if self.transposed {
                View::new(self.store.as_ptr(), self.cols, self.rows, self.rows + GAP, 1).t()
            } else {
                View::new(self.store.as_ptr(), self.rows, self.cols, self.cols + GAP, 1)
            }
        }
    }
}

/// Runs the product into rows with a gap; checks that the gap is left alone.
fn product<B: Element>(
    path: Path,
    a: View<'_>,
    b: View<'_, B>,
    alpha: f32,
    start: Option<&[f32]>,
) -> Vec<f32> {
    let (m, n) = (a.rows(), b.cols());
    let mut out = vec![f32::NAN; m * (n + GAP)];
    for (r, row) in out.chunks_exact_mut(n + GAP).enumerate() {
        row[n..].fill(7.0);
        if let Some(start) = start {
            row[..n].copy_from_slice(&start[r * n..(r + 1) * n]);
        }
    }
    // SAFETY: `out` holds the rows.
    let view = unsafe { ViewMut::new(out.as_mut_ptr(), m, n, n + GAP) };
    path.run(Product { out: view, accumulate: start.is_some(), alpha, a, b });
    for row in out.chunks_exact(n + GAP) {
        assert!(row[n..].iter().all(|x| *x == 7.0), "{path:?} wrote between rows");
    }
    out.chunks_exact(n + GAP).flat_map(|row| row[..n].to_vec()).collect()
}

fn check<B: Element>(path: Path, a: &Operand<f32>, b: &Operand<B>) {
    let shape = (a.rows, b.cols, a.cols);
    let name = format!("{path:?} {shape:?} transposed {} {}", a.transposed, b.transposed);
    let want = reference::gemm(1.0, &a.values, &b.values, shape);
    assert_close(&name, &product(path, a.view(), b.view(), 1.0, None), &want, path.tolerance());
    let start = random(9, a.rows * b.cols);
    let want = reference::gemm(-0.75, &a.values, &b.values, shape);
    let want: Vec<f64> = want.iter().zip(&start).map(|(x, y)| x + f64::from(*y)).collect();
    assert_close(&name, &product(path, a.view(), b.view(), -0.75, Some(&start)), &want, path.tolerance());
}

#[test]
fn products_match_the_reference() {
    for path in paths() {
        for (m, n, k) in
            [(1, 1, 1), (2, 3, 5), (16, 32, 32), (17, 31, 33), (63, 65, 64), (65, 61, 300), (40, 130, 129)]
        {
            for forms in 0..4 {
                let a = Operand::new(1, m, k, forms & 1 == 1, |x| x);
                check(path, &a, &Operand::new(2, k, n, forms & 2 == 2, |x| x));
                check(path, &a, &Operand::new(3, k, n, forms & 2 == 2, bf16::from_f32));
            }
        }
    }
}

/// By a bf16 operand nothing of an f32 is lost.
#[cfg(target_arch = "x86_64")]
#[test]
fn three_parts_are_a_whole_f32() {
    if !amx::available() {
        return println!("skipped: this machine has no AMX");
    }
    let path = Path::Amx(amx::Parts::Three);
    for (m, n, k) in [(1, 1, 1), (2, 3, 5), (17, 31, 33), (65, 61, 300), (40, 130, 129), (390, 530, 1100)] {
        for forms in 0..4 {
            let a = Operand::new(1, m, k, forms & 1 == 1, |x| x);
            check(path, &a, &Operand::new(3, k, n, forms & 2 == 2, bf16::from_f32));
        }
    }
    let a = Operand::new(1, 1, 1, false, |_| 1.0 + f32::EPSILON);
    let b = Operand::new(1, 1, 1, false, |_| bf16::from_f32(1.5));
    assert_eq!(product(path, a.view(), b.view(), 1.0, None), [1.5 + 1.5 * f32::EPSILON]);
}

/// Few rows by a weight that is not packed: as with packing, to the last bit, and whatever the number of rows.
#[cfg(target_arch = "x86_64")]
#[test]
fn few_rows_are_the_same_in_any_company() {
    if !amx::available() {
        return println!("skipped: this machine has no AMX");
    }
    for parts in [amx::Parts::One, amx::Parts::Two, amx::Parts::Three] {
        for (n, k) in [(32, 1), (33, 31), (64, 64), (70, 300), (97, 576), (260, 1029)] {
            let b = Operand::new(2, k, n, true, bf16::from_f32);
            let all = Operand::new(1, 64, k, false, |x| x);
            let start = random(9, 64 * n);
            for accumulate in [false, true] {
                let run = |m: usize, few: bool| {
                    let mut out = if accumulate { start[..m * n].to_vec() } else { vec![f32::NAN; m * n] };
                    // SAFETY: `out` holds the rows.
                    let view = unsafe { ViewMut::new(out.as_mut_ptr(), m, n, n) };
                    let a = all.view().part(0, 0, m, k);
                    let product = Product { out: view, accumulate, alpha: 1.0, a, b: b.view() };
                    if few {
                        assert!(amx::few::takes(&product));
                        amx::few::run(product, parts);
                    } else {
                        amx::run(product, parts);
                    }
                    out
                };
                let want = run(64, false);
                for m in [1, 2, 15, 16, 17, 32, 33, 64] {
                    let got = run(m, true);
                    assert!(got == want[..m * n], "{parts:?} {m} x {n} x {k}, accumulate {accumulate}");
                }
            }
        }
    }
}

/// Rows that are packed once for several weights: as packed for each, to the last bit, on any number of threads.
#[cfg(target_arch = "x86_64")]
#[test]
fn rows_are_the_same_packed_once() {
    if !amx::available() {
        return println!("skipped: this machine has no AMX");
    }
    for parts in [amx::Parts::One, amx::Parts::Two, amx::Parts::Three] {
        for (m, widths, k) in [
            (1, vec![1], 1),
            (65, vec![40, 33], 31),
            (97, vec![64, 7, 1], 300),
            (70, vec![576, 192, 192], 576),
            (1100, vec![70], 1543),
        ] {
            let a = Operand::new(1, m, k, false, |x| x);
            let weights: Vec<_> =
                widths.iter().map(|n| Operand::new(2 + *n as u64, k, *n, true, bf16::from_f32)).collect();
            for (accumulate, alpha) in [(false, 1.0), (true, -0.75)] {
                let starts: Vec<_> = widths.iter().map(|n| random(9, m * n)).collect();
                let outs = |run: &dyn Fn(Vec<ViewMut<'_>>)| {
                    let mut outs = starts.clone();
                    let views = outs.iter_mut().zip(&widths);
                    // SAFETY: `outs` hold the rows.
                    run(views.map(|(out, n)| unsafe { ViewMut::new(out.as_mut_ptr(), m, *n, *n) }).collect());
                    outs
                };
                let want = outs(&|outs| {
                    for (out, weight) in outs.into_iter().zip(&weights) {
                        let (a, b) = (a.view(), weight.view());
                        amx::run(Product { out, accumulate, alpha, a, b }, parts);
                    }
                });
                for threads in [1, 2, 5] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let got = outs(&|outs| {
                        let targets = outs.into_iter().zip(&weights);
                        let targets =
                            targets.map(|(out, w)| Target { weight: w.view().t(), out, accumulate });
                        pool.install(|| amx::many::run(a.view(), alpha, &targets.collect::<Vec<_>>(), parts));
                    });
                    assert!(got == want, "{parts:?} {m} x {widths:?} x {k}, {accumulate}, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn long_sums_and_several_blocks() {
    for path in paths() {
        if path != Path::Scalar {
            for forms in 0..4 {
                let a = Operand::new(4, 390, 1100, forms & 1 == 1, |x| x);
                check(path, &a, &Operand::new(5, 1100, 530, forms & 2 == 2, |x| x));
            }
        }
    }
}

#[test]
fn an_empty_sum_is_zero() {
    let (a, b) = (vec![0.0; 8], vec![0.0; 8]);
    let mut out = vec![f32::NAN; 6];
    // SAFETY: no element of `a` and `b` is read.
    unsafe {
        let (a, b) = (View::new(a.as_ptr(), 2, 0, 1, 1), View::new(b.as_ptr(), 0, 3, 3, 1));
        gemm(ViewMut::new(out.as_mut_ptr(), 2, 3, 3), false, 1.0, a, b);
    }
    assert_eq!(out, [0.0; 6]);
}

#[test]
fn threads_do_not_change_bits() {
    for path in paths() {
        let shapes: &[_] = if path == Path::Scalar {
            &[(70, 90, 200)]
        } else {
            &[(513, 300, 260), (64, 70, 2100), (2050, 48, 100)]
        };
        for &(m, n, k) in shapes {
            for forms in 0..4 {
                let a = Operand::new(6, m, k, forms & 1 == 1, |x| x);
                let b = Operand::new(7, k, n, forms & 2 == 2, |x| x);
                let on = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| product(path, a.view(), b.view(), 1.0, None))
                };
                let one = on(1);
                for threads in [2, 3, 8] {
                    assert!(one == on(threads), "{path:?} {m} {n} {k} on {threads} threads");
                }
            }
        }
    }
}

/// The bound that PyTorch's "high" gives, element by element: |error| <= 1e-5 |a_i| |b_j| in 2-norms.
#[test]
fn three_bf16_products_keep_16_bits() {
    for path in amx_paths() {
        let limit = if path.tolerance() < 1e-3 { 1e-5 } else { 4e-3 };
        let (m, n, k) = (96, 80, 2048);
        let a = Operand::new(10, m, k, false, |x| x * 1000.0);
        let b = Operand::new(11, k, n, true, |x| x * x * x);
        let want = reference::gemm(1.0, &a.values, &b.values, (m, n, k));
        let got = product(path, a.view(), b.view(), 1.0, None);
        for i in 0..m {
            let row: f64 = a.values[i * k..(i + 1) * k].iter().map(|x| x * x).sum();
            for j in 0..n {
                let col: f64 = (0..k).map(|p| b.values[p * n + j] * b.values[p * n + j]).sum();
                let error = (f64::from(got[i * n + j]) - want[i * n + j]).abs();
                assert!(error <= limit * row.sqrt() * col.sqrt(), "{path:?} [{i}, {j}]: error {error:.3e}");
            }
        }
    }
}

#[test]
fn tiles_work_from_many_threads_at_once() {
    for path in amx_paths() {
        let a = Operand::new(12, 70, 100, false, |x| x);
        let b = Operand::new(13, 100, 90, true, |x| x);
        let want = product(path, a.view(), b.view(), 1.0, None);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        assert!(product(path, a.view(), b.view(), 1.0, None) == want);
                    }
                });
            }
        });
    }
}

#[test]
#[should_panic(expected = "gemm: [2, 3] x [4, 5] into [2, 5]")]
fn shapes_are_checked() {
    let store = [0.0; 20];
    let mut out = [0.0; 10];
    // SAFETY: the stores hold the matrices.
    unsafe {
        let (a, b) = (View::new(store.as_ptr(), 2, 3, 3, 1), View::new(store.as_ptr(), 4, 5, 5, 1));
        gemm(ViewMut::new(out.as_mut_ptr(), 2, 5, 5), false, 1.0, a, b);
    }
}

#[test]
fn small_values_keep_their_precision() {
    let a = Operand::new(14, 33, 64, false, |x| x * 1e-30);
    let b = Operand::new(15, 64, 33, false, |x| x * 1e20);
    for path in paths() {
        let want = reference::gemm(1.0, &a.values, &b.values, (33, 33, 64));
        let got = product(path, a.view(), b.view(), 1.0, None);
        let scaled: Vec<f32> = got.iter().map(|x| x * 1e10).collect();
        let want: Vec<f64> = want.iter().map(|x| x * 1e10).collect();
        assert_close(&format!("{path:?}"), &scaled, &want, path.tolerance());
    }
}
