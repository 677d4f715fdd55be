//! Where tensors live and ops run.

use std::{fmt, str::FromStr};

/// A processor with its own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Device {
    /// The host's processor, all its threads.
    #[default]
    Cpu,
}

impl Device {
    /// Bytes of memory that can still be taken without driving others out, where the system tells.
    pub fn available_memory(self) -> Option<u64> {
        match self {
            Self::Cpu => available(&std::fs::read_to_string("/proc/meminfo").ok()?),
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
}
