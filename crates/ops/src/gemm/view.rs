//! Operands of a matrix product: an address, a shape and strides.

use half::bf16;
use keyfold_tensor::Tensor;
use std::marker::PhantomData;

/// An element type of a right-hand operand: stored as is, multiplied as f32.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// Whether values are bf16.
    const IS_BF16: bool;

    /// The value, exactly.
    fn widen(self) -> f32;
}

impl Element for f32 {
    const IS_BF16: bool = false;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const IS_BF16: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// A matrix to read: element (r, c) lies at `ptr + r * row_stride + c * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, E = f32> {
    pub(super) ptr: *const E,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
    life: PhantomData<&'a E>,
}

// SAFETY: a view is a shared slice with strides.
unsafe impl<E: Sync> Send for View<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for View<'_, E> {}

impl<'a> View<'a> {
    /// A view of an f32 tensor.
    ///
    /// # Panics
    /// When the tensor is not f32.
    pub fn of(tensor: &'a Tensor) -> Self {
        // SAFETY: a tensor's rows lie within its buffer.
        unsafe { Self::new(tensor.as_ptr(), tensor.rows(), tensor.cols(), tensor.stride(), 1) }
    }
}

impl<'a> View<'a, bf16> {
    /// A view of a bf16 tensor.
    ///
    /// # Panics
    /// When the tensor is not bf16.
    pub fn of_bf16(tensor: &'a Tensor) -> Self {
        // SAFETY: a tensor's rows lie within its buffer.
        unsafe { Self::new(tensor.as_mut_bf16_ptr(), tensor.rows(), tensor.cols(), tensor.stride(), 1) }
    }
}

impl<'a, E> View<'a, E> {
    /// A view of `rows` x `cols` elements at `ptr`.
    ///
    /// # Safety
    /// All elements must be readable, and not be written by others, for `'a`.
    pub unsafe fn new(ptr: *const E, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        Self { ptr, rows, cols, row_stride, col_stride, life: PhantomData }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Elements from one column to the next.
    pub fn col_stride(&self) -> usize {
        self.col_stride
    }

    /// Rows `row ..` and columns `col ..`, `rows` x `cols` of them.
    pub(super) fn part(self, row: usize, col: usize, rows: usize, cols: usize) -> Self {
        debug_assert!(row + rows <= self.rows && col + cols <= self.cols);
        // SAFETY: the part lies within this view.
        let ptr = unsafe { self.ptr.add(row * self.row_stride + col * self.col_stride) };
        Self { ptr, rows, cols, ..self }
    }
}

/// A matrix to write: rows of adjacent elements.
#[derive(Debug)]
pub struct ViewMut<'a> {
    pub(super) ptr: *mut f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    life: PhantomData<&'a mut f32>,
}

// SAFETY: a mutable view is an exclusive slice with a stride.
unsafe impl Send for ViewMut<'_> {}
// SAFETY: nothing can be written through a shared reference to it but by `part`, which is unsafe.
unsafe impl Sync for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// A view of an f32 tensor.
    ///
    /// # Panics
    /// When the tensor is not f32.
    pub fn of(tensor: &'a mut Tensor) -> Self {
        // SAFETY: a tensor's rows lie within its buffer.
        unsafe { Self::new(tensor.as_mut_ptr(), tensor.rows(), tensor.cols(), tensor.stride()) }
    }

    /// A view of `rows` x `cols` elements at `ptr`, columns adjacent.
    ///
    /// # Safety
    /// All elements must be writable, and not be used by others, for `'a`.
    pub unsafe fn new(ptr: *mut f32, rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { ptr, rows, cols, row_stride, life: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Rows `row ..` and columns `col ..`, `rows` x `cols` of them.
    ///
    /// # Safety
    /// Parts in use at the same time must not overlap.
    pub(super) unsafe fn part(&self, row: usize, col: usize, rows: usize, cols: usize) -> ViewMut<'_> {
        debug_assert!(row + rows <= self.rows && col + cols <= self.cols);
        // SAFETY: the part lies within this view; the caller keeps parts apart.
        unsafe { ViewMut::new(self.ptr.add(row * self.row_stride + col), rows, cols, self.row_stride) }
    }
}
