//! Small arrays of the host that kernels read: token ids, targets, document starts, slopes.
//!
//! A step uses the same few arrays many times (every layer's attention reads the same document starts), so the last ones
//! are kept on the device and found again by their contents.

use keyfold_core::DType;
use keyfold_tensor::{Arena, Tensor, cuda::Gpu};
use std::sync::{Mutex, PoisonError};

/// Arrays kept at a time.
const KEPT: usize = 12;

struct Entry {
    device: usize,
    bytes: Vec<u8>,
    tensor: Tensor,
}

#[derive(Default)]
struct Uploads {
    arenas: Vec<(usize, Arena)>,
    /// Last used last.
    entries: Vec<Entry>,
}

static UPLOADS: Mutex<Option<Uploads>> = Mutex::new(None);

/// Memory for what the ops themselves need beside their tensors.
pub(crate) fn arena(gpu: &Gpu) -> Arena {
    let mut uploads = UPLOADS.lock().unwrap_or_else(PoisonError::into_inner);
    uploads.get_or_insert_default().arena(gpu)
}

/// An f32 matrix of unspecified contents for the time of an op.
pub(crate) fn scratch(gpu: &Gpu, rows: usize, cols: usize) -> Tensor {
    arena(gpu).tensor(rows, cols, DType::F32)
}

impl Uploads {
    fn arena(&mut self, gpu: &Gpu) -> Arena {
        if let Some((_, arena)) = self.arenas.iter().find(|(index, _)| *index == gpu.index()) {
            return arena.clone();
        }
        let arena = Arena::on(gpu.device()).unwrap_or_else(|error| error.raise());
        self.arenas.push((gpu.index(), arena.clone()));
        arena
    }
}

/// `bytes` in the memory of `gpu`, padded with zeros to whole words.
pub(crate) fn uploaded(gpu: &Gpu, bytes: &[u8]) -> Tensor {
    let mut uploads = UPLOADS.lock().unwrap_or_else(PoisonError::into_inner);
    let uploads = uploads.get_or_insert_default();
    let same = |entry: &Entry| entry.device == gpu.index() && entry.bytes == bytes;
    let entry = match uploads.entries.iter().position(same) {
        Some(at) => uploads.entries.remove(at),
        None => {
            let words = bytes.len().div_ceil(4).max(1);
            let mut padded = bytes.to_vec();
            padded.resize(4 * words, 0);
            let mut tensor = uploads.arena(gpu).tensor(1, words, DType::F32);
            tensor.write_bytes(&padded);
            Entry { device: gpu.index(), bytes: bytes.to_vec(), tensor }
        }
    };
    let tensor = entry.tensor.clone();
    uploads.entries.push(entry);
    if uploads.entries.len() > KEPT {
        uploads.entries.remove(0);
    }
    tensor
}

/// [`uploaded`] for ids, positions and the like.
pub(crate) fn uploaded_u32(gpu: &Gpu, values: &[u32]) -> Tensor {
    // SAFETY: any bytes of u32 are bytes.
    uploaded(gpu, unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) })
}

/// [`uploaded`] for weights and slopes.
pub(crate) fn uploaded_f32(gpu: &Gpu, values: &[f32]) -> Tensor {
    // SAFETY: any bytes of f32 are bytes.
    uploaded(gpu, unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) })
}
