//! Kernels in the program's own data, loaded where they are first used.

use cudarc::driver::{result, sys};
use keyfold_tensor::cuda::Gpu;
use std::{
    collections::HashMap,
    ffi::CString,
    sync::{Mutex, PoisonError},
};

/// A fat binary of one source file.
pub(crate) struct Module {
    name: &'static str,
    image: &'static [u8],
    loaded: Mutex<Option<Loaded>>,
}

/// What of it is loaded, by device and function.
#[derive(Default)]
struct Loaded {
    modules: HashMap<usize, sys::CUmodule>,
    functions: HashMap<(usize, &'static str), Function>,
}

// SAFETY: handles of loaded code, which stays loaded; any thread may launch it.
unsafe impl Send for Loaded {}

/// A kernel on one device.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    handle: sys::CUfunction,
    /// Bytes of dynamic shared memory that it may use at most.
    shared: usize,
}

impl Module {
    pub(crate) const fn new(name: &'static str, image: &'static [u8]) -> Self {
        Self { name, image, loaded: Mutex::new(None) }
    }

    /// The kernel `function` on `gpu`, whose context is current. The code is loaded if it is not yet.
    pub(crate) fn function(&self, gpu: &Gpu, function: &'static str) -> Function {
        // A map is whole whatever interrupted another thread's use of it.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.get_or_insert_default();
        if let Some(found) = loaded.functions.get(&(gpu.index(), function)) {
            return *found;
        }
        let module = *loaded.modules.entry(gpu.index()).or_insert_with(|| {
            // SAFETY: the image is a whole fat binary, made by nvcc.
            let module = unsafe { result::module::load_data(self.image.as_ptr().cast()) };
            gpu.check(&format!("load the kernels of {}", self.name), module)
        });
        let name = CString::new(function).unwrap_or_default();
        // SAFETY: the module is loaded and stays so.
        let handle = unsafe { result::module::get_function(module, name) };
        let handle = gpu.check(&format!("find the kernel {function} of {}", self.name), handle);
        // More than 48 KiB of shared memory is given only to those who ask; what is static counts too.
        // SAFETY: the function was just found.
        let limit = unsafe {
            let fixed = result::function::get_function_attribute(
                handle,
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            );
            let limit = gpu.shared_memory() as i32 - gpu.check("ask for a kernel's shared memory", fixed);
            let set = result::function::set_function_attribute(
                handle,
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                limit,
            );
            gpu.check("set a kernel's shared memory", set);
            limit
        };
        let found = Function { handle, shared: limit as usize };
        loaded.functions.insert((gpu.index(), function), found);
        found
    }
}

impl Function {
    /// The driver's handle.
    pub(crate) fn handle(self) -> sys::CUfunction {
        self.handle
    }

    /// Bytes of dynamic shared memory that a launch may ask for.
    pub(crate) fn shared_limit(self) -> usize {
        self.shared
    }
}

/// The fat binary that `build.rs` made for the op of this name.
macro_rules! module {
    ($name:literal) => {
        $crate::cuda::Module::new($name, include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin")))
    };
}
pub(crate) use module;
