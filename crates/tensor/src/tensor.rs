//! Row-major matrices over shared memory.

use crate::{Arena, Device, arena::Buffer, cuda, e4m3};
use half::bf16;
use keyfold_core::DType;
use std::{any::Any, fmt, ptr::NonNull, sync::Arc};

/// A matrix of `rows` x `cols`: element (r, c) lies at `r * stride + c`, columns are adjacent.
///
/// A tensor is a handle, as in PyTorch: clones and views share memory, and what is written through one is seen by all.
/// Whoever writes must be the only one at work on that memory at that time. Ops keep this by splitting *disjoint* rows
/// or columns among threads; the tape and the optimizers keep it by running one op after the other.
///
/// On a device the same holds for the work given to it: it is done in the order in which it was asked for. What gives
/// slices or pointers to f32 or bf16 is for the host's memory; [`Tensor::address`] is for both.
#[derive(Clone)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    /// First element, counted in elements from the buffer's start.
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
    dtype: DType,
}

impl Tensor {
    pub(crate) fn from_buffer(buffer: Arc<Buffer>, rows: usize, cols: usize, dtype: DType) -> Self {
        Self { buffer, offset: 0, rows, cols, stride: cols, dtype }
    }

    /// A contiguous tensor over memory that `owner` keeps (a mapped file).
    ///
    /// # Safety
    /// `ptr` is aligned for `dtype` and the start of `rows * cols` elements, which stay in place, readable and writable,
    /// as long as `owner` lives.
    pub unsafe fn foreign(
        ptr: NonNull<u8>,
        owner: Arc<dyn Any + Send + Sync>,
        rows: usize,
        cols: usize,
        dtype: DType,
    ) -> Self {
        Self::from_buffer(Arc::new(Buffer::foreign(ptr, owner)), rows, cols, dtype)
    }

    /// This tensor and `next`, which lies right behind it in the same memory, as one with the rows of both.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let follows = Arc::ptr_eq(&self.buffer, &next.buffer)
            && self.is_contiguous()
            && next.is_contiguous()
            && (self.cols, self.dtype) == (next.cols, next.dtype)
            && self.offset + self.len() == next.offset;
        follows.then(|| Self { rows: self.rows + next.rows, stride: self.cols, ..self.clone() })
    }

    /// Whose memory it lies in.
    pub fn device(&self) -> Device {
        self.buffer.device()
    }

    /// Address of the first element, in its device's memory.
    pub fn address(&self) -> u64 {
        self.buffer.ptr() as u64 + (self.offset * self.dtype.bytes()) as u64
    }

    /// A contiguous copy in the memory of `arena`, of the same element type.
    pub fn copied_to(&self, arena: &Arena) -> Self {
        let mut copy = arena.tensor(self.rows, self.cols, self.dtype);
        copy.write_bytes(&self.to_bytes());
        copy
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row's start to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the rows follow one another without a gap.
    pub fn is_contiguous(&self) -> bool {
        self.stride == self.cols || self.rows <= 1
    }

    /// Whether no other tensor shares this memory.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.buffer) == 1
    }

    /// A view of columns `start .. start + width` of every row.
    ///
    /// # Panics
    /// When the range leaves the tensor.
    pub fn columns(&self, start: usize, width: usize) -> Self {
        assert!(start + width <= self.cols, "columns {start}+{width} of a tensor with {} columns", self.cols);
        Self { offset: self.offset + start, cols: width, ..self.clone() }
    }

    /// A view of rows `start .. start + count`.
    ///
    /// # Panics
    /// When the range leaves the tensor.
    pub fn row_range(&self, start: usize, count: usize) -> Self {
        assert!(start + count <= self.rows, "rows {start}+{count} of a tensor with {} rows", self.rows);
        Self { offset: self.offset + start * self.stride, rows: count, ..self.clone() }
    }

    /// The same elements as `rows` x `cols`.
    ///
    /// # Panics
    /// When the tensor is not contiguous or the number of elements differs.
    pub fn reshape(&self, rows: usize, cols: usize) -> Self {
        assert!(self.is_contiguous(), "reshape of a tensor with gaps between its rows");
        assert_eq!(self.len(), rows * cols, "reshape {} x {} to {rows} x {cols}", self.rows, self.cols);
        Self { rows, cols, stride: cols, ..self.clone() }
    }

    /// Address of the first f32.
    ///
    /// # Panics
    /// When the elements are not f32.
    pub fn as_ptr(&self) -> *const f32 {
        self.as_mut_ptr()
    }

    /// Address of the first f32, for writing; see the type's rule on writers.
    ///
    /// # Panics
    /// When the elements are not f32.
    pub fn as_mut_ptr(&self) -> *mut f32 {
        assert_eq!(self.dtype, DType::F32, "an f32 tensor was expected");
        self.check_host();
        // SAFETY: `offset` lies within the buffer by construction.
        unsafe { self.buffer.ptr().cast::<f32>().add(self.offset) }
    }

    /// Address of the first bf16, for writing; see the type's rule on writers.
    ///
    /// # Panics
    /// When the elements are not bf16.
    pub fn as_mut_bf16_ptr(&self) -> *mut bf16 {
        assert_eq!(self.dtype, DType::Bf16, "a bf16 tensor was expected");
        self.check_host();
        // SAFETY: `offset` lies within the buffer by construction.
        unsafe { self.buffer.ptr().cast::<bf16>().add(self.offset) }
    }

    /// The f32 elements of a contiguous tensor.
    ///
    /// # Safety
    /// Nobody may write to this memory while the slice lives.
    ///
    /// # Panics
    /// When the tensor has gaps or is not f32.
    pub unsafe fn as_slice(&self) -> &[f32] {
        assert!(self.is_contiguous(), "as_slice of a tensor with gaps between its rows");
        // SAFETY: contiguous, within the buffer; the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    /// The f32 elements of a contiguous tensor, for writing.
    ///
    /// # Safety
    /// Nobody else may read or write this memory while the slice lives.
    ///
    /// # Panics
    /// When the tensor has gaps or is not f32.
    pub unsafe fn as_mut_slice(&mut self) -> &mut [f32] {
        assert!(self.is_contiguous(), "as_mut_slice of a tensor with gaps between its rows");
        // SAFETY: contiguous, within the buffer; the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len()) }
    }

    /// One f32 row.
    ///
    /// # Safety
    /// Nobody may write to this row while the slice lives.
    ///
    /// # Panics
    /// When there is no such row or the tensor is not f32.
    pub unsafe fn row(&self, row: usize) -> &[f32] {
        assert!(row < self.rows, "row {row} of a tensor with {} rows", self.rows);
        // SAFETY: the row lies within the buffer; the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(self.as_ptr().add(row * self.stride), self.cols) }
    }

    /// One f32 row, for writing.
    ///
    /// # Safety
    /// Nobody else may read or write this row while the slice lives.
    ///
    /// # Panics
    /// When there is no such row or the tensor is not f32.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row_mut(&self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of a tensor with {} rows", self.rows);
        // SAFETY: the row lies within the buffer; the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().add(row * self.stride), self.cols) }
    }

    #[track_caller]
    fn check_host(&self) {
        assert!(
            self.device() == Device::Cpu,
            "a tensor in the memory of {} used as the host's",
            self.device()
        );
    }

    /// Where the rows lie.
    fn layout(&self) -> Rows {
        let bytes = self.dtype.bytes();
        let (count, cols) = if self.is_contiguous() { (1, self.len()) } else { (self.rows, self.cols) };
        Rows { count, bytes: cols * bytes, pitch: self.stride * bytes }
    }

    /// The elements' bytes, row by row. Waits for a device.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len() * self.dtype.bytes()];
        if bytes.is_empty() {
            return bytes;
        }
        let rows = self.layout();
        match self.device() {
            Device::Cuda(index) => cuda::download(index, self.address(), rows, &mut bytes),
            Device::Cpu => {
                for (row, to) in bytes.chunks_exact_mut(rows.bytes).enumerate() {
                    // SAFETY: the row lies within the buffer; writers run before or after, by the type's rule.
                    let from = unsafe {
                        std::slice::from_raw_parts(
                            (self.address() as *const u8).add(row * rows.pitch),
                            rows.bytes,
                        )
                    };
                    to.copy_from_slice(from);
                }
            }
        }
        bytes
    }

    /// Overwrites all elements with such bytes as [`Tensor::to_bytes`] gives. Does not wait for a device.
    ///
    /// # Panics
    /// When `bytes` has another length.
    pub fn write_bytes(&mut self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.len() * self.dtype.bytes(), "bytes of {self:?}");
        if bytes.is_empty() {
            return;
        }
        let rows = self.layout();
        match self.device() {
            Device::Cuda(index) => cuda::upload(index, self.address(), rows, bytes),
            Device::Cpu => {
                for (row, from) in bytes.chunks_exact(rows.bytes).enumerate() {
                    // SAFETY: the row lies within the buffer and the caller is its only writer, by the type's rule.
                    let to = unsafe {
                        std::slice::from_raw_parts_mut(
                            (self.address() as *mut u8).add(row * rows.pitch),
                            rows.bytes,
                        )
                    };
                    to.copy_from_slice(from);
                }
            }
        }
    }

    /// The values as f32, row by row; 8-bit ones as they are, without scales. Waits for a device.
    pub fn to_vec(&self) -> Vec<f32> {
        if self.device() != Device::Cpu || self.dtype == DType::Fp8 {
            return values(&self.to_bytes(), self.dtype);
        }
        let mut out = Vec::with_capacity(self.len());
        for row in 0..self.rows {
            let start = row * self.stride;
            match self.dtype {
                // SAFETY: the row lies within the buffer; writers run before or after this call, by the type's rule.
                DType::F32 => out.extend_from_slice(unsafe { self.row(row) }),
                DType::Bf16 => {
                    let ptr = self.as_mut_bf16_ptr();
                    // SAFETY: as above.
                    out.extend((0..self.cols).map(|col| unsafe { *ptr.add(start + col) }.to_f32()));
                }
                DType::Fp8 => {}
            }
        }
        out
    }

    /// Overwrites all elements, rounding to the element type.
    ///
    /// # Panics
    /// When `values` does not hold `rows * cols` values.
    pub fn write(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.len(), "write to a tensor of {} x {}", self.rows, self.cols);
        if self.cols == 0 {
            return;
        }
        if self.device() != Device::Cpu || self.dtype == DType::Fp8 {
            return self.write_bytes(&bytes(values, self.dtype));
        }
        for (row, values) in values.chunks_exact(self.cols).enumerate() {
            match self.dtype {
                // SAFETY: the row lies within the buffer and the caller is its only writer, by the type's rule.
                DType::F32 => unsafe { self.row_mut(row) }.copy_from_slice(values),
                DType::Bf16 => {
                    let ptr = self.as_mut_bf16_ptr();
                    for (col, value) in values.iter().enumerate() {
                        // SAFETY: as above.
                        unsafe { *ptr.add(row * self.stride + col) = bf16::from_f32(*value) };
                    }
                }
                DType::Fp8 => {}
            }
        }
    }

    /// Sets all elements to zero.
    pub fn fill_zero(&mut self) {
        if let Device::Cuda(index) = self.device() {
            if !self.is_empty() {
                cuda::fill(index, self.address(), self.layout(), 0);
            }
            return;
        }
        let bytes = self.dtype.bytes();
        let (runs, run) = if self.is_contiguous() { (1, self.len()) } else { (self.rows, self.cols) };
        for row in 0..runs {
            // SAFETY: rows lie within the buffer; all-zero bits are 0.0 in both element types.
            unsafe {
                self.buffer.ptr().add((self.offset + row * self.stride) * bytes).write_bytes(0, run * bytes);
            }
        }
    }
}

/// Rows in memory: `count` of `bytes` each, `pitch` bytes from one's start to the next's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
    pub(crate) pitch: usize,
}

impl Rows {
    /// One row of `bytes`.
    pub(crate) fn run(bytes: usize) -> Self {
        Self { count: 1, bytes, pitch: bytes }
    }

    /// Whether there is no gap.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub(crate) fn is_one_run(self) -> bool {
        self.count == 1 || self.bytes == self.pitch
    }
}

/// Stored elements as f32.
fn values(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        DType::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::Fp8 => bytes.iter().map(|b| e4m3::to_f32(*b)).collect(),
    }
}

/// Values as they are stored.
fn bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        DType::Fp8 => values.iter().map(|x| e4m3::from_f32(*x)).collect(),
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} x {}, {}, stride {})", self.rows, self.cols, self.dtype, self.stride)
    }
}
