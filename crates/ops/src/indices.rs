//! Whole numbers that ops read where the tensors lie: token ids, positions, rows of a cache.

use keyfold_core::DType;
use keyfold_tensor::{Arena, Device, Tensor};

/// A fixed number of numbers.
///
/// On a GPU they stay in one place, so that recorded work sees those of the day, and kernels may write them: what the host
/// knows is then what it wrote last.
#[derive(Debug)]
pub struct Indices {
    values: Vec<u32>,
    /// The same on a GPU.
    placed: Option<Tensor>,
}

impl Indices {
    /// `values` for ops on tensors of `arena`'s device.
    pub fn new(arena: &Arena, values: Vec<u32>) -> Self {
        let placed = match arena.device() {
            Device::Cpu => None,
            // A word of any kind takes as much room as an f32.
            Device::Cuda(_) => Some(arena.tensor(1, values.len().max(1), DType::F32)),
        };
        let mut indices = Self { values: Vec::new(), placed };
        indices.values.clone_from(&values);
        indices.place();
        indices
    }

    /// Other values, as many as before.
    ///
    /// # Panics
    /// When their number differs.
    pub fn update(&mut self, values: &[u32]) {
        assert_eq!(values.len(), self.values.len(), "indices: number of values");
        if self.values != values {
            self.overwrite(values);
        }
    }

    /// As [`Indices::update`], where kernels may have written since.
    ///
    /// # Panics
    /// As [`Indices::update`].
    pub fn overwrite(&mut self, values: &[u32]) {
        self.values.copy_from_slice(values);
        self.place();
    }

    /// What the host wrote last.
    pub fn values(&self) -> &[u32] {
        &self.values
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// What kernels have made of them; the host knows that then.
    pub fn read(&mut self) -> &[u32] {
        if let Some(placed) = &self.placed {
            let bytes = placed.to_bytes();
            let words =
                bytes.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            self.values.iter_mut().zip(words).for_each(|(value, word)| *value = word);
        }
        &self.values
    }

    fn place(&mut self) {
        if let Some(placed) = &mut self.placed {
            let mut bytes: Vec<u8> = self.values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            bytes.resize(4 * placed.len(), 0);
            placed.write_bytes(&bytes);
        }
    }

    /// Where they lie on the GPU `gpu`.
    ///
    /// # Panics
    /// When they are the host's.
    #[cfg(feature = "cuda")]
    #[track_caller]
    pub(crate) fn on(&self, gpu: &keyfold_tensor::cuda::Gpu) -> u64 {
        match &self.placed {
            Some(placed) if placed.device() == gpu.device() => placed.address(),
            _ => panic!("indices of another device than {}", gpu.device()),
        }
    }
}
