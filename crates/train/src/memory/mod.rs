//! The most memory that this process held.
//!
//! "Resident" counts all pages in memory, those of mapped files too. On Linux the value is `VmHWM` of
//! `/proc/self/status`; other Unix systems tell it by `getrusage`; elsewhere it is unknown.

const MIB: f64 = (1 << 20) as f64;

/// A part of a program whose peak is wanted by itself, such as the training of one variant of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct PeakScope {
    resettable: bool,
}

impl PeakScope {
    /// Starts a scope by setting the process's high-water mark back to what is resident now.
    pub fn start() -> Self {
        Self { resettable: reset_peak() }
    }

    /// The most that was resident since the start, in MiB; `None` where the mark could not be set back, because the
    /// value would then be that of the whole process so far.
    ///
    /// Memory that the allocator kept from before the start is counted. Scopes of one process share the mark: one at
    /// a time.
    pub fn peak_mib(self) -> Option<f64> {
        if self.resettable { peak_rss_mib() } else { None }
    }
}

/// The most that was ever resident in this process, in MiB, or since a [`PeakScope`] was last started.
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok();
    status.as_deref().and_then(high_water_mib).or_else(usage_mib)
}

/// `VmHWM` of a `/proc/<pid>/status`, in MiB.
fn high_water_mib(status: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kib as f64 * 1024.0 / MIB)
}

/// Asks Linux to set the high-water mark back (proc(5), `clear_refs`, value 5). Containers may forbid it.
fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[cfg(unix)]
fn usage_mib() -> Option<f64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to memory of the right size; all-zero bytes are a valid `rusage` should the call fail.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    // Apple counts bytes, all others KiB.
    let unit = if cfg!(target_vendor = "apple") { 1.0 } else { 1024.0 };
    Some(usage.ru_maxrss as f64 * unit / MIB)
}

#[cfg(not(unix))]
fn usage_mib() -> Option<f64> {
    None
}

#[cfg(test)]
mod tests;
