//! Where tensors live and ops run.

use std::{fmt, str::FromStr};

/// A processor with its own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Device {
    /// The host's processor, all its threads.
    #[default]
    Cpu,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cpu")
    }
}

/// A device name that is not known or not built in.
#[derive(Debug, thiserror::Error)]
#[error("unknown device `{0}`: this build knows cpu")]
pub struct ParseDeviceError(String);

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "cpu" => Ok(Self::Cpu),
            other => Err(ParseDeviceError(other.to_owned())),
        }
    }
}
