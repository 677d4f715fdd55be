//! Matrix products through cuBLASLt. The one place that knows that it counts columns first.
//!
//! A row-major matrix is its own transpose to cuBLASLt, so that `out = a b` is asked for as `out^T = b^T a^T`: the operands
//! change places, and a matrix that is to be read transposed is one that cuBLASLt need not transpose for the other reason.
//!
//! The library proposes algorithms for a shape; the fastest one of them, as measured on the tensors at hand, serves that
//! shape from then on. So the first step of a training run is slow, and the bits of a sum may differ between processes.

use super::{gpu_of, uploads::arena};
use crate::gemm::{Precision, precision};
use cudarc::{
    cublaslt::{result as lt, sys as lt_sys},
    driver::{result, sys},
};
use keyfold_core::DType;
use keyfold_tensor::{Arena, DeviceError, Tensor, cuda::Gpu};
use std::{
    collections::HashMap,
    ffi::c_void,
    mem::MaybeUninit,
    ptr::from_ref,
    sync::{Mutex, PoisonError},
};

/// Scratch memory that algorithms may use: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Algorithms that are tried.
const CANDIDATES: usize = 24;
/// Products of fewer multiplications take the first proposal: measuring would find launch times.
const WORTH_TIMING: usize = 1 << 26;
/// Rows of a product that is bound by reading its weight.
const FEW_ROWS: usize = 256;
/// More than a GPU's caches hold.
const COLD_BYTES: usize = 128 << 20;
/// Runs of a candidate that are measured, after one that is not.
const RUNS: usize = 3;

/// A matrix, or its transpose.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    tensor: &'a Tensor,
    transposed: bool,
}

impl<'a> Operand<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Self {
        Self { tensor, transposed: false }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    fn shape(self) -> (usize, usize) {
        let (rows, cols) = (self.tensor.rows(), self.tensor.cols());
        if self.transposed { (cols, rows) } else { (rows, cols) }
    }
}

/// `out = alpha a b`, or `out += alpha a b` with `accumulate`; sums are f32 whatever the element types.
///
/// # Shapes
/// `a` [m, k] and `b` [k, n] of one element type, `out` [m, n] f32 or bf16.
///
/// # Panics
/// When the shapes do not match, or `a` and `b` have different element types.
pub(crate) fn gemm(out: &Tensor, accumulate: bool, alpha: f32, a: Operand<'_>, b: Operand<'_>) {
    gemm_batched(out, accumulate, alpha, a, b, Batch::ONE);
}

/// Products of one shape.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Batch {
    pub(crate) count: usize,
    /// Elements from one `out`, `a` and `b` to the next.
    pub(crate) steps: [usize; 3],
}

impl Batch {
    const ONE: Self = Self { count: 1, steps: [0; 3] };
}

/// As [`gemm`], for each of a batch; the tensors are those of the first.
pub(crate) fn gemm_batched(
    out: &Tensor,
    accumulate: bool,
    alpha: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    batch: Batch,
) {
    let ((m, k), (inner, n)) = (a.shape(), b.shape());
    assert!(
        inner == k && (out.rows(), out.cols()) == (m, n),
        "gemm: [{m}, {k}] x [{inner}, {n}] into [{}, {}]",
        out.rows(),
        out.cols()
    );
    assert_eq!(a.tensor.dtype(), b.tensor.dtype(), "gemm: element types of the operands");
    let gpu = gpu_of(out);
    for operand in [a, b] {
        assert_eq!(operand.tensor.device(), gpu.device(), "gemm: device of an operand");
    }
    if m == 0 || n == 0 || batch.count == 0 {
        return;
    }
    if k == 0 {
        assert_eq!(batch.count, 1, "gemm: a batch of products over nothing");
        if !accumulate {
            out.clone().fill_zero();
        }
        return;
    }
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let library = Library::of(&mut libraries, gpu);
    library.run(gpu, out, accumulate, alpha, a, b, batch);
}

static LIBRARIES: Mutex<Vec<Library>> = Mutex::new(Vec::new());

/// cuBLASLt on one device.
struct Library {
    device: usize,
    handle: lt_sys::cublasLtHandle_t,
    workspace: Tensor,
    plans: HashMap<Key, Plan>,
}

// SAFETY: the handle and the descriptors may be used by any thread, one at a time.
unsafe impl Send for Library {}

/// One matrix as cuBLASLt sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    cols: usize,
    stride: usize,
    dtype: DType,
    transposed: bool,
    /// Bytes that its address is a multiple of, up to 256.
    alignment: u32,
}

impl Shape {
    fn of(operand: Operand<'_>) -> Self {
        let Operand { tensor, transposed } = operand;
        let (rows, cols) = (tensor.rows(), tensor.cols());
        // The distance to a next row that is not there may be anything.
        let stride = if rows > 1 { tensor.stride() } else { cols };
        let alignment = 1 << tensor.address().trailing_zeros().min(8);
        Self { rows, cols, stride, dtype: tensor.dtype(), transposed, alignment }
    }

    /// The layout of `count` such matrices, `step` elements apart.
    fn layout(self, count: usize, step: usize) -> Result<lt_sys::cublasLtMatrixLayout_t, lt::CublasError> {
        let layout = lt::create_matrix_layout(
            data_type(self.dtype),
            self.cols as u64,
            self.rows as u64,
            self.stride as i64,
        )?;
        if count > 1 {
            use lt_sys::cublasLtMatrixLayoutAttribute_t as Attribute;
            let (count, step) = (count as i32, step as i64);
            // SAFETY: attributes of a layout that was just made, given with their sizes.
            unsafe {
                let attribute = Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
                lt::set_matrix_layout_attribute(layout, attribute, from_ref(&count).cast(), 4)?;
                let attribute = Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
                lt::set_matrix_layout_attribute(layout, attribute, from_ref(&step).cast(), 8)?;
            }
        }
        Ok(layout)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    out: Shape,
    a: Shape,
    b: Shape,
    accumulate: bool,
    tf32: bool,
    batch: Batch,
}

/// How a product of some shape is computed.
struct Plan {
    product: lt_sys::cublasLtMatmulDesc_t,
    /// Layouts of b, a and out: the operands change places.
    layouts: [lt_sys::cublasLtMatrixLayout_t; 3],
    algorithm: lt_sys::cublasLtMatmulAlgo_t,
}

fn data_type(dtype: DType) -> lt_sys::cudaDataType {
    match dtype {
        DType::F32 => lt_sys::cudaDataType::CUDA_R_32F,
        DType::Bf16 => lt_sys::cudaDataType::CUDA_R_16BF,
        DType::Fp8 => lt_sys::cudaDataType::CUDA_R_8F_E4M3,
    }
}

fn check<T>(gpu: &Gpu, what: &str, outcome: Result<T, lt::CublasError>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => DeviceError::Library {
            device: gpu.device(),
            library: "cuBLASLt",
            problem: format!("{what}: {:?}", error.0),
        }
        .raise(),
    }
}

impl Library {
    fn of<'a>(libraries: &'a mut Vec<Self>, gpu: &Gpu) -> &'a mut Self {
        let at = match libraries.iter().position(|library| library.device == gpu.index()) {
            Some(at) => at,
            None => {
                libraries.push(Self::open(gpu));
                libraries.len() - 1
            }
        };
        &mut libraries[at]
    }

    fn open(gpu: &Gpu) -> Self {
        // SAFETY: looks for the library alone.
        if !unsafe { lt_sys::is_culib_present() } {
            let problem =
                "libcublasLt.so cannot be loaded: install NVIDIA's cuBLAS, version 12 or later, and put its \
                           folder into LD_LIBRARY_PATH"
                    .to_owned();
            DeviceError::Library { device: gpu.device(), library: "cuBLASLt", problem }.raise()
        }
        let handle = check(gpu, "make a handle", lt::create_handle());
        let workspace = arena(gpu).tensor(1, WORKSPACE / 4, DType::F32);
        Self { device: gpu.index(), handle, workspace, plans: HashMap::new() }
    }

    #[allow(clippy::too_many_arguments)]
    fn run(
        &mut self,
        gpu: &Gpu,
        out: &Tensor,
        accumulate: bool,
        alpha: f32,
        a: Operand<'_>,
        b: Operand<'_>,
        batch: Batch,
    ) {
        let tf32 = a.tensor.dtype() == DType::F32 && precision() != Precision::Highest;
        let [a_shape, b_shape] = [a, b].map(Shape::of);
        let key = Key { out: Shape::of(Operand::of(out)), a: a_shape, b: b_shape, accumulate, tf32, batch };
        let call = Call { alpha, beta: if accumulate { 1.0 } else { 0.0 }, a: a.tensor, b: b.tensor };
        if !self.plans.contains_key(&key) {
            let plan = self.plan(gpu, key, call, out);
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        check(gpu, "multiply", self.start(gpu, plan, &plan.algorithm, call, out.address()));
    }

    fn start(
        &self,
        gpu: &Gpu,
        plan: &Plan,
        algorithm: &lt_sys::cublasLtMatmulAlgo_t,
        call: Call<'_>,
        out: u64,
    ) -> Result<(), lt::CublasError> {
        let Call { alpha, beta, a, b } = call;
        let [b_layout, a_layout, out_layout] = plan.layouts;
        // SAFETY: the layouts are those of these tensors, which lie in the device's memory.
        unsafe {
            lt::matmul(
                self.handle,
                plan.product,
                from_ref(&alpha).cast(),
                from_ref(&beta).cast(),
                b.address() as *const c_void,
                b_layout,
                a.address() as *const c_void,
                a_layout,
                out as *const c_void,
                out_layout,
                out as *mut c_void,
                out_layout,
                algorithm,
                self.workspace.address() as *mut c_void,
                WORKSPACE,
                gpu.stream().cast(),
            )
        }
    }

    /// Finds how to compute products of the shapes in `key`, of which `call` is the first.
    fn plan(&self, gpu: &Gpu, key: Key, call: Call<'_>, out: &Tensor) -> Plan {
        let compute = match key.tf32 {
            true => lt_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => lt_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let product = check(
            gpu,
            "describe a product",
            lt::create_matmul_desc(compute, lt_sys::cudaDataType::CUDA_R_32F),
        );
        use lt_sys::cublasLtMatmulDescAttributes_t as Attribute;
        for (attribute, shape) in
            [(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, key.b), (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, key.a)]
        {
            // CUBLAS_OP_N and CUBLAS_OP_T.
            let operation = i32::from(shape.transposed);
            // SAFETY: the attribute is an operation, given with its size.
            let set = unsafe {
                let size = size_of_val(&operation);
                lt::set_matmul_desc_attribute(product, attribute, from_ref(&operation).cast(), size)
            };
            check(gpu, "describe an operand", set);
        }
        let [out_step, a_step, b_step] = key.batch.steps;
        let layouts = [(key.b, b_step), (key.a, a_step), (key.out, out_step)]
            .map(|(shape, step)| check(gpu, "describe a matrix", shape.layout(key.batch.count, step)));
        let found = check(gpu, "find an algorithm", self.candidates(key, product, layouts));
        let Some(first) = found.first() else {
            check(
                gpu,
                "find an algorithm",
                Err(lt::CublasError(lt_sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)),
            )
        };
        let mut plan = Plan { product, layouts, algorithm: first.algo };
        let (m, n) = (key.out.rows, key.out.cols);
        let k = if key.a.transposed { key.a.rows } else { key.a.cols };
        if found.len() > 1 && m * n * k * key.batch.count >= WORTH_TIMING {
            self.choose(gpu, &mut plan, &found, call, out);
        }
        plan
    }

    fn candidates(
        &self,
        key: Key,
        product: lt_sys::cublasLtMatmulDesc_t,
        [b, a, out]: [lt_sys::cublasLtMatrixLayout_t; 3],
    ) -> Result<Vec<lt_sys::cublasLtMatmulHeuristicResult_t>, lt::CublasError> {
        use lt_sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = lt::create_matmul_pref()?;
        type Found = lt_sys::cublasLtMatmulHeuristicResult_t;
        let mut found = [const { MaybeUninit::<Found>::uninit() }; CANDIDATES];
        let mut count = 0;
        // SAFETY: attributes are given with their sizes; the descriptors exist; `found` has room for what is asked for.
        unsafe {
            let workspace = WORKSPACE as u64;
            let attribute = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            lt::set_matmul_pref_attribute(preference, attribute, from_ref(&workspace).cast(), 8)?;
            for (attribute, shape) in [
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.b),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.a),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.out),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.out),
            ] {
                lt::set_matmul_pref_attribute(preference, attribute, from_ref(&shape.alignment).cast(), 4)?;
            }
            lt_sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                product,
                b,
                a,
                out,
                out,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr().cast(),
                &raw mut count,
            )
            .result()?;
            lt::destroy_matmul_pref(preference)?;
        }
        // SAFETY: the library has written the first `count`.
        let found = found[..count as usize].iter().map(|found| unsafe { found.assume_init() });
        Ok(found.filter(|found| found.state == lt_sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS).collect())
    }

    /// Measures the candidates and takes the fastest.
    fn choose(
        &self,
        gpu: &Gpu,
        plan: &mut Plan,
        found: &[lt_sys::cublasLtMatmulHeuristicResult_t],
        call: Call<'_>,
        out: &Tensor,
    ) {
        // What is added to must not be added to many times: such a product is measured on other memory.
        let other = (call.beta != 0.0).then(|| {
            let span = (out.rows() - 1) * out.stride() + out.cols();
            let arena = Arena::on(gpu.device()).unwrap_or_else(|error| error.raise());
            arena.tensor(1, span, out.dtype())
        });
        // Few rows read a weight that no cache holds by then: it must not be there when they are measured.
        let cold = (out.rows() <= FEW_ROWS).then(|| arena(gpu).tensor(1, COLD_BYTES / 4, DType::F32));
        let out = other.as_ref().unwrap_or(out).address();
        let mut best = f32::INFINITY;
        for candidate in found {
            let run = || self.start(gpu, plan, &candidate.algo, call, out).is_ok();
            if let Some(time) = time(gpu, || cold.clone().iter_mut().for_each(Tensor::fill_zero), run)
                && time < best
            {
                (best, plan.algorithm) = (time, candidate.algo);
            }
        }
    }
}

/// One product: its factor, what of `out` is kept, and its operands.
#[derive(Clone, Copy)]
struct Call<'a> {
    alpha: f32,
    beta: f32,
    a: &'a Tensor,
    b: &'a Tensor,
}

/// Milliseconds of `run` on the device, each time after `before`, at best; nothing if it fails.
fn time(gpu: &Gpu, before: impl Fn(), run: impl Fn() -> bool) -> Option<f32> {
    let event = || gpu.check("make an event", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT));
    let (start, end) = (event(), event());
    let mut best = run().then_some(f32::INFINITY);
    for _ in 0..RUNS {
        before();
        // SAFETY: both events exist, and were recorded in the stream when they are read.
        unsafe {
            gpu.check("record an event", result::event::record(start, gpu.stream()));
            let ran = run();
            gpu.check("record an event", result::event::record(end, gpu.stream()));
            gpu.check("wait for a product", result::event::synchronize(end));
            let time = gpu.check("read a time", result::event::elapsed(start, end));
            best = best.filter(|_| ran).map(|best| best.min(time));
        }
    }
    // SAFETY: nothing uses the events any more.
    unsafe {
        let _ = result::event::destroy(start);
        let _ = result::event::destroy(end);
    }
    best
}
