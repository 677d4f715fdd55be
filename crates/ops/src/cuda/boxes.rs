//! How the copy engine of Hopper finds boxes of arrays.

use cudarc::driver::sys;
use keyfold_core::DType;
use keyfold_tensor::cuda::Gpu;
use std::{ffi::c_void, ptr::from_ref};

/// A description for the copy engine: `CUtensorMap`.
pub(crate) type Boxes = sys::CUtensorMap;

/// Describes the array at `address` of `dims` elements of bf16 (or bytes, of 8 bits), `steps` elements from one to the next in
/// all dimensions but the innermost, which comes first; the boxes have `extent` elements. Their rows of 128 bytes arrive permuted
/// as `wgmma.cuh` has them, and what lies beyond `dims` as zeros.
///
/// # Panics
/// When the address or a step is no multiple of 16 bytes.
pub(crate) fn boxes<const RANK: usize>(
    gpu: &Gpu,
    name: &str,
    dtype: DType,
    address: u64,
    dims: [usize; RANK],
    steps: &[usize],
    extent: [usize; RANK],
) -> Boxes {
    assert!(
        address.is_multiple_of(16) && steps.iter().all(|step| (dtype.bytes() * step).is_multiple_of(16)),
        "{name}: rows and heads must begin at multiples of 16 bytes"
    );
    assert_eq!(steps.len() + 1, RANK, "{name}: steps");
    let kind = match dtype {
        DType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::Fp8 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
    };
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let dims = dims.map(|dim| dim.max(1) as u64);
    let steps: Vec<u64> = steps.iter().map(|step| (dtype.bytes() * step) as u64).collect();
    let extent = extent.map(|size| size as u32);
    let apart = [1; RANK];
    // SAFETY: all arrays have as many entries as the rank says (steps one less), and live during the call.
    let made = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            kind,
            RANK as u32,
            address as *mut c_void,
            from_ref(&dims).cast(),
            steps.as_ptr(),
            from_ref(&extent).cast(),
            from_ref(&apart).cast(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            // What a box asks for and no more: with 256 bytes at a time memory is up to a tenth slower, as other boxes ask for the rest.
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    gpu.check(&format!("describe {name} to the copy engine"), made.result());
    map
}
