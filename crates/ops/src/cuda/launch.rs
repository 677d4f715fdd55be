//! Starting kernels.

use super::Function;
use cudarc::driver::sys;
use keyfold_core::DType;
use keyfold_tensor::{Tensor, cuda::Gpu};
use std::ffi::c_void;

/// The oldest compute capability whose kernels can start early.
const EARLY: (i32, i32) = (9, 0);

/// How many threads run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub(crate) shared: usize,
    /// Starts while the kernel before it ends, for which it waits by itself (programmatic dependent launch).
    pub(crate) early: bool,
    /// Neighbouring blocks that run together and see each other's shared memory (Hopper and later).
    pub(crate) cluster: usize,
}

impl Launch {
    /// `blocks` blocks of `threads` threads.
    pub(crate) fn blocks(blocks: usize, threads: u32) -> Self {
        Self {
            grid: [blocks.max(1) as u32, 1, 1],
            block: [threads, 1, 1],
            shared: 0,
            early: false,
            cluster: 1,
        }
    }

    /// For loops over `rows` and `cols / lanes` (FOR_ROWS, FOR_COLS): blocks of 256 threads, as many across a row as it
    /// has work for.
    pub(crate) fn rows(rows: usize, cols: usize, lanes: usize) -> Self {
        let across = cols.div_ceil(lanes).next_power_of_two().clamp(1, 256) as u32;
        let down = 256 / across;
        let blocks = rows.div_ceil(down as usize).clamp(1, 1 << 20) as u32;
        Self { grid: [blocks, 1, 1], block: [across, down, 1], shared: 0, early: false, cluster: 1 }
    }

    /// As [`Launch::rows`] for few long rows too: each has as many blocks (FOR_COLS_SPREAD) as it has work for.
    pub(crate) fn spread(rows: usize, cols: usize, lanes: usize) -> Self {
        let mut launch = Self::rows(rows, cols, lanes);
        launch.grid[1] = cols.div_ceil(lanes * launch.block[0] as usize).clamp(1, 64) as u32;
        launch
    }

    /// The same with `bytes` of dynamic shared memory.
    pub(crate) fn shared(self, bytes: usize) -> Self {
        Self { shared: bytes, ..self }
    }

    /// The same in clusters of `blocks` blocks.
    pub(crate) fn cluster(self, blocks: usize) -> Self {
        Self { cluster: blocks, ..self }
    }

    /// The same, started early: the kernel begins with `wait_for_previous_kernel`.
    pub(crate) fn early(self) -> Self {
        Self { early: true, ..self }
    }
}

/// A matrix as kernels take it: `Matrix<T>` of `common.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mat {
    pub(crate) address: u64,
    pub(crate) stride: i64,
}

impl Mat {
    pub(crate) fn of(tensor: &Tensor) -> Self {
        Self { address: tensor.address(), stride: tensor.stride() as i64 }
    }

    /// Where a kernel does not look.
    pub(crate) const NONE: Self = Self { address: 0, stride: 0 };
}

/// Which of a kernel's four forms (FORMS) fits its tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forms {
    dtype: DType,
    wide: bool,
}

impl Forms {
    /// The form for tensors of `dtype` whose rows are walked in steps that divide `cols`: wide when all rows of all tensors
    /// begin at multiples of 16 bytes and `cols` is a multiple of the elements in 16 bytes.
    pub(crate) fn of(dtype: DType, cols: &[usize], tensors: &[&Tensor]) -> Self {
        let lanes = 16 / dtype.bytes();
        let aligned = |tensor: &&Tensor| {
            let pitch = tensor.stride() * tensor.dtype().bytes();
            tensor.address().is_multiple_of(16) && (tensor.rows() <= 1 || pitch.is_multiple_of(16))
        };
        let wide = cols.iter().all(|cols| cols.is_multiple_of(lanes)) && tensors.iter().all(aligned);
        Self { dtype, wide }
    }

    /// Elements of one access.
    pub(crate) fn lanes(self) -> usize {
        if self.wide { 16 / self.dtype.bytes() } else { 1 }
    }

    /// Of the four names, in the order of FORMS, the one to launch.
    pub(crate) fn choose(self, names: [&'static str; 4]) -> &'static str {
        names[2 * usize::from(self.dtype == DType::Bf16) + usize::from(self.wide)]
    }
}

/// The kernel that takes elements of one type to another, of those of `cast` and `scatter`.
pub(crate) fn conversion(from: DType, to: DType, wide: bool) -> &'static str {
    match (from, to, wide) {
        (DType::F32, DType::F32, false) => "f32_to_f32",
        (DType::F32, DType::F32, true) => "f32_to_f32_wide",
        (DType::F32, DType::Bf16, false) => "f32_to_bf16",
        (DType::F32, DType::Bf16, true) => "f32_to_bf16_wide",
        (DType::Bf16, DType::F32, false) => "bf16_to_f32",
        (DType::Bf16, DType::F32, true) => "bf16_to_f32_wide",
        (DType::Bf16, DType::Bf16, false) => "bf16_to_bf16",
        (DType::Bf16, DType::Bf16, true) => "bf16_to_bf16_wide",
        (DType::Fp8, ..) | (_, DType::Fp8, _) => DType::Fp8.unsupported("cast"),
    }
}

/// The names of a kernel's four forms.
macro_rules! forms {
    ($name:literal) => {
        [
            concat!($name, "_f32"),
            concat!($name, "_f32_wide"),
            concat!($name, "_bf16"),
            concat!($name, "_bf16_wide"),
        ]
    };
}
pub(crate) use forms;

/// Starts `function` on `gpu`; see [`launch!`].
///
/// # Safety
/// `arguments` point to values of the kernel's parameter types; addresses among them are of the device's memory and large
/// enough for what the kernel does with them.
pub(crate) unsafe fn start(gpu: &Gpu, function: Function, launch: Launch, arguments: &mut [*mut c_void]) {
    assert!(
        launch.shared <= function.shared_limit(),
        "a kernel needs {} bytes of shared memory, {} can be had",
        launch.shared,
        function.shared_limit()
    );
    with_config(gpu, launch, |config| {
        // SAFETY: the caller's promise; the configuration lives during the call.
        let started = unsafe {
            sys::cuLaunchKernelEx(config, function.handle(), arguments.as_mut_ptr(), std::ptr::null_mut())
        };
        gpu.check("start a kernel", started.result());
    });
}

/// How many clusters of a launch of `function` the GPU runs at a time; those of more than 8 blocks are allowed from now on.
pub(crate) fn clusters_at_once(gpu: &Gpu, function: Function, launch: Launch) -> usize {
    use sys::CUfunction_attribute_enum as Attribute;
    let large = Attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
    // SAFETY: a function of a module that is never unloaded.
    gpu.check("allow clusters", unsafe { sys::cuFuncSetAttribute(function.handle(), large, 1) }.result());
    let mut count = 0;
    with_config(gpu, launch, |config| {
        // SAFETY: the configuration lives during the call.
        let found = unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut count, function.handle(), config) };
        gpu.check("ask for clusters", found.result());
    });
    count.max(0) as usize
}

/// `work` with `launch` as the driver wants it.
fn with_config(gpu: &Gpu, launch: Launch, work: impl FnOnce(&sys::CUlaunchConfig)) {
    let Launch { grid, block, shared, early, cluster } = launch;
    let attribute = |id, value| sys::CUlaunchAttribute { id, pad: Default::default(), value };
    use sys::CUlaunchAttributeID as Id;
    let mut attributes = [attribute(
        Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster as u32, y: 1, z: 1 },
        },
    ); 2];
    let mut count = usize::from(cluster > 1);
    if early && gpu.capability() >= EARLY {
        attributes[count] = attribute(
            Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        );
        count += 1;
    }
    let config = sys::CUlaunchConfig {
        gridDimX: grid[0],
        gridDimY: grid[1],
        gridDimZ: grid[2],
        blockDimX: block[0],
        blockDimY: block[1],
        blockDimZ: block[2],
        sharedMemBytes: shared as u32,
        hStream: gpu.stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: count as u32,
    };
    work(&config);
}

/// `launch!(gpu, KERNELS, "name", launch; argument, ...)` starts a kernel. Arguments must have the types of its parameters:
/// `Mat` for `Matrix`, `u64` for an address, `i32`, `f32`, `i64`.
macro_rules! launch {
    ($gpu:expr, $module:expr, $name:expr, $launch:expr; $($argument:expr),+ $(,)?) => {{
        let (gpu, launch) = ($gpu, $launch);
        let function = $module.function(gpu, $name);
        // SAFETY: the arguments are listed as the kernel declares them; the op's entry checks cover its accesses.
        unsafe {
            $crate::cuda::start(
                gpu,
                function,
                launch,
                &mut [$((&raw const *(&$argument)).cast_mut().cast::<std::ffi::c_void>()),+],
            );
        }
    }};
}
pub(crate) use launch;
