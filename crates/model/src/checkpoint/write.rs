//! Writing weights in the form of the family that the model is written in.

use super::WEIGHTS_FILE;
use crate::{
    config::ModelConfig,
    error::CheckpointError,
    families::{self, Family},
    weights::{Init, Weights},
};
use half::bf16;
use keyfold_core::DType;
use keyfold_tensor::{Tensor, e4m3};
use safetensors::{Dtype, View};
use std::{borrow::Cow, collections::HashMap, path::Path};

/// Writes all weights into `dir`, matrices as `dtype`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_weights(
    dir: &Path,
    config: &ModelConfig,
    weights: &Weights,
    dtype: DType,
) -> Result<(), CheckpointError> {
    write_weights_as(dir, families::of(config), weights, dtype)
}

/// As [`write_weights`], under the names of `family`, which must be that of the folder's `config.json`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_weights_as(
    dir: &Path,
    family: &Family,
    weights: &Weights,
    dtype: DType,
) -> Result<(), CheckpointError> {
    let path = dir.join(WEIGHTS_FILE);
    let names = family.names;
    let mut stored: Vec<(String, Stored)> = Vec::new();
    let mut stacks: HashMap<String, usize> = HashMap::new();
    for (declared, param) in weights.iter() {
        let place = (names.place)(&declared.name);
        if let Some(at) = stacks.get(&place.tensor) {
            let (_, stack) = &mut stored[*at];
            stack.values.push(param.value);
            stack.shape[0] += 1;
            continue;
        }
        let mut shape = declared.shape.clone();
        if place.slice.is_some() {
            shape.insert(0, 1);
            stacks.insert(place.tensor.clone(), stored.len());
        }
        let gain_offset = if declared.init == Init::Ones { names.gain_offset } else { 0.0 };
        // Vectors are few and sensitive: they stay f32.
        let dtype = if declared.is_matrix() { dtype } else { DType::F32 };
        stored.push((place.tensor, Stored { shape, values: vec![param.value], dtype, gain_offset }));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(stored, Some(metadata), &path)
        .map_err(|source| CheckpointError::Safetensors { path, source })
}

/// One tensor as the file stores it; its bytes are made when they are written.
struct Stored {
    shape: Vec<usize>,
    values: Vec<Tensor>,
    dtype: DType,
    gain_offset: f32,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::BF16,
            DType::Fp8 => Dtype::F8_E4M3,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        for value in &self.values {
            let values = value.to_vec().into_iter().map(|x| x - self.gain_offset);
            match self.dtype {
                DType::F32 => values.for_each(|x| bytes.extend(x.to_le_bytes())),
                DType::Bf16 => values.for_each(|x| bytes.extend(bf16::from_f32(x).to_le_bytes())),
                DType::Fp8 => bytes.extend(values.map(e4m3::from_f32)),
            }
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}
