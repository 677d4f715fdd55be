//! The tensors of a checkpoint folder, where its files have them.

use super::{INDEX_FILE, WEIGHTS_FILE, read_json};
use crate::{
    config::ModelConfig,
    error::{CheckpointError, ConfigError},
    families::{Names, Place},
    weights::{Declared, Init},
};
use half::{bf16, f16};
use keyfold_core::DType;
use keyfold_tensor::{Arena, Device, Tensor};
use memmap2::{MmapMut, MmapOptions};
use safetensors::{Dtype, SafeTensors};
use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    path::{Component, Path, PathBuf},
    ptr::NonNull,
    sync::Arc,
};

/// All tensors of a folder.
pub(super) struct Files {
    names: Names,
    /// What file names have before, and in place of, `model.`.
    prefix: &'static str,
    tensors: HashMap<String, Entry>,
    /// The file that errors about absent tensors name.
    main: PathBuf,
    layers: usize,
    tied: bool,
}

/// A tensor of a mapped file.
struct Entry {
    map: Arc<MmapMut>,
    path: Arc<PathBuf>,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes from the file's start.
    start: usize,
}

/// What wrapping models put around the language model's names.
const PREFIXES: [(&str, &str); 3] =
    [("", "model."), ("language_model.", "language_model.model."), ("", "model.language_model.")];

impl Files {
    pub(super) fn open(dir: &Path, names: Names, config: &ModelConfig) -> Result<Self, CheckpointError> {
        let single = dir.join(WEIGHTS_FILE);
        let index = dir.join(INDEX_FILE);
        let (main, paths) = if !single.exists() && index.exists() {
            (index.clone(), shards(dir, &index)?)
        } else {
            (single.clone(), vec![single])
        };
        let mut tensors = HashMap::new();
        for path in paths {
            add_file(&path, &mut tensors)?;
        }
        let has = |prefix: &str| tensors.contains_key(&format!("{prefix}embed_tokens.weight"));
        let prefix = PREFIXES.iter().map(|(_, model)| *model).find(|model| has(model)).unwrap_or("model.");
        let (layers, tied) = (config.num_hidden_layers, config.tie_word_embeddings);
        Ok(Self { names, prefix, tensors, main, layers, tied })
    }

    /// Fails unless all of `declared` is there, in the declared shapes, and nothing that does not belong there.
    pub(super) fn check(&self, declared: &[Declared]) -> Result<(), CheckpointError> {
        let mut used = BTreeSet::new();
        for weight in declared {
            self.find(weight)?;
            used.insert(self.place(weight).tensor);
        }
        let extra = self.tensors.keys().filter(|name| !used.contains(*name) && !self.may_be_left(name)).min();
        match extra {
            None => Ok(()),
            Some(name) => {
                let path = self.tensors[name].path.to_path_buf();
                Err(CheckpointError::ExtraTensor { path, name: name.clone() })
            }
        }
    }

    /// The tensor that holds `weight`, its shape and type checked.
    pub(super) fn find(&self, weight: &Declared) -> Result<Found<'_>, CheckpointError> {
        let Place { tensor: name, slice } = self.place(weight);
        let Some(entry) = self.tensors.get(&name) else {
            let expected = weight.shape.clone();
            return Err(CheckpointError::MissingTensor { path: self.main.clone(), name, expected });
        };
        let known = matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let shape = match (slice, entry.shape.split_first()) {
            (None, _) => Some(&entry.shape[..]),
            (Some(index), Some((count, rest))) if index < *count => Some(rest),
            _ => None,
        };
        if shape != Some(&weight.shape[..]) || !known {
            let stacked = if slice.is_some() { "a stack of " } else { "" };
            return Err(CheckpointError::Tensor {
                path: entry.path.to_path_buf(),
                name,
                expected: format!("{stacked}{:?} of F32, F16 or BF16", weight.shape),
                found: format!("{:?} of {:?}", entry.shape, entry.dtype),
            });
        }
        let gain_offset = if weight.init == Init::Ones { self.names.gain_offset } else { 0.0 };
        let len = weight.len();
        let start = entry.start + slice.unwrap_or(0) * len * width(entry.dtype);
        Ok(Found { entry, start, len, gain_offset })
    }

    fn place(&self, weight: &Declared) -> Place {
        let place = (self.names.place)(&weight.name);
        let tensor = match place.tensor.strip_prefix("model.") {
            Some(rest) => format!("{}{rest}", self.prefix),
            None => {
                let outer = PREFIXES.iter().find(|(_, model)| *model == self.prefix);
                format!("{}{}", outer.map_or("", |(outer, _)| outer), place.tensor)
            }
        };
        Place { tensor, ..place }
    }

    /// Whether a tensor that is no weight of the model may be there: the embedding again as a head, tables that can be
    /// computed, layers that predict further tokens, what a wrapping model sees with.
    fn may_be_left(&self, name: &str) -> bool {
        let Some(rest) = name.strip_prefix(self.prefix) else {
            return (self.tied && name.ends_with("lm_head.weight")) || self.prefix != "model.";
        };
        let layer =
            rest.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        let further = self.names.further_layers && layer.is_some_and(|layer| layer >= self.layers);
        rest.ends_with("rotary_emb.inv_freq") || further
    }
}

/// A checked tensor.
pub(super) struct Found<'a> {
    entry: &'a Entry,
    start: usize,
    len: usize,
    gain_offset: f32,
}

impl Found<'_> {
    /// Overwrites `target` with the values.
    pub(super) fn read_into(&self, target: &mut Tensor) {
        let width = width(self.entry.dtype);
        let data = &self.entry.map[self.start..][..self.len * width];
        if self.entry.dtype == Dtype::BF16 && target.dtype() == DType::Bf16 {
            return match target.device() {
                Device::Cpu => copy_halves(data, target),
                Device::Cuda(_) => target.write_bytes(data),
            };
        }
        // In pieces, so that a large matrix does not exist a third time.
        const ROWS: usize = 256;
        let cols = target.cols().max(1);
        for (index, chunk) in data.chunks(ROWS * cols * width).enumerate() {
            let values: Vec<f32> = match self.entry.dtype {
                Dtype::BF16 => halves(chunk).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
                Dtype::F16 => halves(chunk).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
                _ => chunk.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            };
            let values = match self.gain_offset {
                0.0 => values,
                offset => values.iter().map(|gain| gain + offset).collect(),
            };
            target.row_range(index * ROWS, values.len() / cols).write(&values);
        }
    }

    /// The matrix `weight` where the file has it, or a copy where that cannot be.
    pub(super) fn tensor(&self, weight: &Declared, arena: &Arena) -> Tensor {
        let (rows, cols) = (weight.shape[0], weight.shape[1]);
        let dtype = match self.entry.dtype {
            Dtype::BF16 => DType::Bf16,
            _ => DType::F32,
        };
        let ptr = self.entry.map[self.start..].as_ptr();
        let in_place = cfg!(target_endian = "little")
            && self.entry.dtype != Dtype::F16
            && (ptr as usize).is_multiple_of(dtype.bytes());
        match NonNull::new(ptr.cast_mut()).filter(|_| in_place) {
            // SAFETY: aligned, `rows * cols` elements lie within the map (safetensors checked the tensor, `find` the
            // shape), and the map is a private, writable copy that lives as long as the tensor.
            Some(ptr) => unsafe { Tensor::foreign(ptr, self.entry.map.clone(), rows, cols, dtype) },
            None => {
                let mut copy = arena.tensor(rows, cols, dtype);
                self.read_into(&mut copy);
                copy
            }
        }
    }
}

fn width(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

fn halves(data: &[u8]) -> impl Iterator<Item = [u8; 2]> + '_ {
    data.chunks_exact(2).map(|b| [b[0], b[1]])
}

fn copy_halves(data: &[u8], target: &mut Tensor) {
    let (rows, cols) = (target.rows(), target.cols());
    for row in 0..rows {
        let target = target.row_range(row, 1);
        let ptr = target.as_mut_bf16_ptr();
        for (col, b) in halves(&data[2 * row * cols..][..2 * cols]).enumerate() {
            // SAFETY: the row has `cols` elements; the caller has the tensor alone.
            unsafe { *ptr.add(col) = bf16::from_le_bytes(b) };
        }
    }
}

/// Adds the tensors of one file.
fn add_file(path: &Path, tensors: &mut HashMap<String, Entry>) -> Result<(), CheckpointError> {
    let file = File::open(path).map_err(CheckpointError::io(path))?;
    // SAFETY: a file that another process cuts while it is mapped is outside what can be defended.
    let map = unsafe { MmapOptions::new().map_copy(&file) }.map_err(CheckpointError::io(path))?;
    let map = Arc::new(map);
    let parsed = SafeTensors::deserialize(&map)
        .map_err(|source| CheckpointError::Safetensors { path: path.to_owned(), source })?;
    let path = Arc::new(path.to_owned());
    for (name, view) in parsed.iter() {
        let entry = Entry {
            map: map.clone(),
            path: path.clone(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            start: view.data().as_ptr() as usize - map.as_ptr() as usize,
        };
        if tensors.insert(name.to_owned(), entry).is_some() {
            return Err(CheckpointError::Repeated { path: path.to_path_buf(), name: name.to_owned() });
        }
    }
    Ok(())
}

/// The files that an index lists, which all lie in `dir`.
fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let wrong = |key: String, expected: &str, found: String| CheckpointError::Config {
        path: index.to_owned(),
        source: ConfigError::value(key, expected, found),
    };
    let json = read_json(index)?;
    let listed = json.get("weight_map").and_then(|map| map.as_object());
    let Some(listed) = listed.filter(|map| !map.is_empty()) else {
        return Err(wrong("weight_map".into(), "an object of file names", "absent or empty".into()));
    };
    let mut files = BTreeSet::new();
    for (tensor, file) in listed {
        let name = file.as_str().unwrap_or_default();
        let mut parts = Path::new(name).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain || !name.ends_with(".safetensors") {
            let key = format!("weight_map.{tensor}");
            return Err(wrong(key, "the name of a .safetensors file in the same folder", file.to_string()));
        }
        files.insert(name.to_owned());
    }
    Ok(files.into_iter().map(|name| dir.join(name)).collect())
}
