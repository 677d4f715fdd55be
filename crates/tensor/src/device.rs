//! Where tensors live and ops run.

use crate::cuda;
use keyfold_core::units;
use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    str::FromStr,
};

/// A processor with its own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// The host's processor, all its threads.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number, as the driver counts them.
    Cuda(usize),
}

impl Device {
    /// Makes the device ready, or tells why it cannot be used.
    ///
    /// # Errors
    /// When this build, the driver or the machine lacks it, or it is too old.
    pub fn open(self) -> Result<(), DeviceError> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(index) => cuda::open(index),
        }
    }

    /// What it is, in words: the model of a GPU.
    pub fn describe(self) -> String {
        match self {
            Self::Cpu => self.to_string(),
            Self::Cuda(index) => cuda::describe(index).unwrap_or_else(|| self.to_string()),
        }
    }

    /// Bytes of memory that can still be taken without driving others out, where the system tells.
    pub fn available_memory(self) -> Option<u64> {
        match self {
            Self::Cpu => available(&std::fs::read_to_string("/proc/meminfo").ok()?),
            Self::Cuda(index) => cuda::memory(index).map(|(free, _)| free),
        }
    }

    /// Waits until all work given to the device is done.
    pub fn synchronize(self) {
        if let Self::Cuda(index) = self {
            cuda::synchronize(index);
        }
    }
}

/// `MemAvailable` of a `/proc/meminfo` (proc(5)), in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// A device name that is not known.
#[derive(Debug, thiserror::Error)]
#[error("unknown device `{0}`: expected cpu, cuda or cuda:N")]
pub struct ParseDeviceError(String);

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseDeviceError(s.to_owned());
        match s {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => {
                let index = other.strip_prefix("cuda:").ok_or_else(unknown)?;
                Ok(Self::Cuda(index.parse().map_err(|_| unknown())?))
            }
        }
    }
}

/// A device that cannot be used, or that failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program has no code for it.
    #[error("device {0}: this build knows cpu alone: build with `--features cuda`")]
    NotBuilt(Device),
    /// The driver is not installed.
    #[error("device {0}: the NVIDIA driver (libcuda.so) cannot be loaded: is there a GPU, and its driver?")]
    NoDriver(Device),
    /// There is no such device.
    #[error("device {device}: the driver shows {count} GPUs, counted from 0")]
    NoDevice {
        /// What was asked for.
        device: Device,
        /// GPUs there are.
        count: usize,
    },
    /// It lacks instructions that the kernels use.
    #[error("device {device}: {name} has compute capability {}.{}: at least 8.0 (Ampere) is needed", capability.0, capability.1)]
    TooOld {
        /// What was asked for.
        device: Device,
        /// The GPU.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// Its memory is full.
    #[error("device {device} is out of memory: {} were needed at once, {} of {} are free, {} are in use by tensors: lower the batch size or the sequence length, or set train.activation_checkpointing", units::bytes(*needed), units::bytes(*free), units::bytes(*total), units::bytes(*live))]
    OutOfMemory {
        /// Where.
        device: Device,
        /// Bytes of the tensor that did not fit.
        needed: u64,
        /// Bytes that the driver could still give.
        free: u64,
        /// Bytes it has.
        total: u64,
        /// Bytes held by tensors of this program.
        live: u64,
    },
    /// A library that it needs cannot be used.
    #[error("device {device}: {library}: {problem}")]
    Library {
        /// Where.
        device: Device,
        /// The library.
        library: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The driver reported an error.
    #[error("device {device}: {action}: {problem}")]
    Driver {
        /// Where.
        device: Device,
        /// What was tried.
        action: String,
        /// What the driver says.
        problem: String,
    },
    /// An op that has no kernel there.
    #[error("device {device}: {op} is not available there")]
    Unsupported {
        /// Where.
        device: Device,
        /// What was asked for.
        op: String,
    },
}

impl DeviceError {
    /// Unwinds to the nearest [`catch`].
    ///
    /// Ops do not return errors: on the CPU nothing of theirs can fail. A device can, anywhere and long after the op that
    /// is to blame, and nothing between that op and the caller of a whole step could do anything about it.
    pub fn raise(self) -> ! {
        resume_unwind(Box::new(self))
    }
}

/// Runs `work`, and returns the error of a device that failed meanwhile.
///
/// # Errors
/// What was [raised](DeviceError::raise).
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, DeviceError> {
    // A failed device is not used again, so that values of ops that did not finish are not seen.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload: Box<dyn Any + Send>| {
        match payload.downcast::<DeviceError>() {
            Ok(error) => *error,
            Err(other) => resume_unwind(other),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_its_line() {
        let text = "MemTotal:       100 kB\nMemAvailable:   42 kB\n";
        assert_eq!(available(text), Some(42 * 1024));
        for bad in ["", "MemAvailable: many kB", "MemAvailable: 3", "MemAvailable: 99999999999999999 kB"] {
            assert_eq!(available(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_round_trip() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for bad in ["", "tpu", "cuda:", "cuda:-1", "cuda:x", "cuda0"] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }

    #[test]
    fn device_errors_are_caught_and_others_are_not() {
        let raised = catch(|| DeviceError::NotBuilt(Device::Cuda(1)).raise());
        let Err(error) = raised.map(|never: ()| never) else { panic!("an error was raised") };
        assert!(error.to_string().contains("cuda:1"), "{error}");
        assert_eq!(catch(|| 3).unwrap(), 3);
        assert!(std::panic::catch_unwind(|| catch(|| panic!("another"))).is_err());
    }
}
