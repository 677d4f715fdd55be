//! Checkpoint folders in Hugging Face form: `config.json` and `model.safetensors`.
//!
//! Reading trusts nothing: sizes are checked against the configuration before memory is taken, and a file that is
//! truncated, has other tensors or other shapes gives an error that names it.

use crate::{
    config::ModelConfig,
    error::CheckpointError,
    families,
    weights::{Declared, Weights},
};
use half::{bf16, f16};
use keyfold_core::DType;
use keyfold_tensor::{Arena, Tensor};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View, tensor::TensorView};
use std::{borrow::Cow, collections::HashMap, fs::File, io::Read, path::Path};

/// Name of the configuration in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the weights in a checkpoint folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// A configuration is text of a few kilobytes; more is not one.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The configuration of the model in `dir`.
///
/// # Errors
/// When the file cannot be read, is no JSON, or describes no model.
pub fn read_config(dir: &Path) -> Result<ModelConfig, CheckpointError> {
    let path = dir.join(CONFIG_FILE);
    let file = File::open(&path).map_err(CheckpointError::io(&path))?;
    let mut text = String::new();
    file.take(MAX_CONFIG_BYTES).read_to_string(&mut text).map_err(CheckpointError::io(&path))?;
    let json =
        serde_json::from_str(&text).map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
    let config = families::read(&json)
        .and_then(|config| config.validate().map(|()| config))
        .map_err(|source| CheckpointError::Config { path, source })?;
    Ok(config)
}

/// Writes the configuration of a model into `dir`; matrices are said to be stored as `dtype`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_config(dir: &Path, config: &ModelConfig, dtype: DType) -> Result<(), CheckpointError> {
    let path = dir.join(CONFIG_FILE);
    let mut text = serde_json::to_string_pretty(&families::write(config, dtype))
        .map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
    text.push('\n');
    std::fs::write(&path, text).map_err(CheckpointError::io(path))
}

/// The weights of the model in `dir`, matrices in memory as `dtype`; with gradients when `train`.
///
/// # Errors
/// When the file cannot be read, is damaged, or holds other tensors than `config` declares.
pub fn read_weights(
    dir: &Path,
    config: &ModelConfig,
    dtype: DType,
    train: bool,
    arena: &Arena,
) -> Result<Weights, CheckpointError> {
    let path = dir.join(WEIGHTS_FILE);
    let file = File::open(&path).map_err(CheckpointError::io(&path))?;
    // SAFETY: the map is read once, here; a file that another process cuts meanwhile is outside what can be defended.
    let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io(&path))?;
    let file = SafeTensors::deserialize(&map)
        .map_err(|source| CheckpointError::Safetensors { path: path.clone(), source })?;
    let declared =
        config.declare().map_err(|source| CheckpointError::Config { path: dir.join(CONFIG_FILE), source })?;
    let tensors: HashMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    for weight in &declared {
        check(&path, weight, tensors.get(&weight.name))?;
    }
    if let Some(name) = tensors.keys().filter(|name| !declared.iter().any(|w| w.name == **name)).min() {
        return Err(CheckpointError::ExtraTensor { path, name: name.clone() });
    }
    let weights = Weights::allocate(arena, declared, dtype, train);
    for (declared, param) in weights.iter() {
        if let Some(view) = tensors.get(&declared.name) {
            let mut value = param.value;
            value.write(&widen(view));
        }
    }
    Ok(weights)
}

/// Writes all weights into `dir`, matrices as `dtype`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_weights(dir: &Path, weights: &Weights, dtype: DType) -> Result<(), CheckpointError> {
    let path = dir.join(WEIGHTS_FILE);
    let views = weights
        .iter()
        .map(|(declared, param)| (declared.name.clone(), Stored::new(declared, &param.value, dtype)));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &path)
        .map_err(|source| CheckpointError::Safetensors { path, source })
}

fn check(path: &Path, declared: &Declared, found: Option<&TensorView<'_>>) -> Result<(), CheckpointError> {
    let Some(view) = found else {
        let (name, expected) = (declared.name.clone(), declared.shape.clone());
        return Err(CheckpointError::MissingTensor { path: path.to_owned(), name, expected });
    };
    let known = matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16);
    if view.shape() != declared.shape || !known {
        return Err(CheckpointError::Tensor {
            path: path.to_owned(),
            name: declared.name.clone(),
            expected: format!("{:?} of F32, F16 or BF16", declared.shape),
            found: format!("{:?} of {:?}", view.shape(), view.dtype()),
        });
    }
    Ok(())
}

/// The values of a tensor whose type [`check`] accepted.
fn widen(view: &TensorView<'_>) -> Vec<f32> {
    let data = view.data();
    let halves = || data.chunks_exact(2).map(|b| [b[0], b[1]]);
    match view.dtype() {
        Dtype::BF16 => halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        Dtype::F16 => halves().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        _ => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// One weight as the file stores it; its bytes are made when they are written.
struct Stored {
    shape: Vec<usize>,
    value: Tensor,
    dtype: DType,
}

impl Stored {
    fn new(declared: &Declared, value: &Tensor, dtype: DType) -> Self {
        // Vectors are few and sensitive: they stay f32.
        let dtype = if declared.is_matrix() { dtype } else { DType::F32 };
        Self { shape: declared.shape.clone(), value: value.clone(), dtype }
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.value.to_vec();
        Cow::Owned(match self.dtype {
            DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

#[cfg(test)]
mod tests;
