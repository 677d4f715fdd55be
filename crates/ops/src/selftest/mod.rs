//! Checks of a device's kernels against the host's: `keyfold selftest`.
//!
//! Every op with a kernel runs on both, on the same values (rounded to the element type first), forward and backward, on
//! odd and on typical sizes, on views with gaps, with NaN in all memory that nothing was written to. The host's paths are
//! the ones that the tests hold to double precision.

mod attention;
mod cached;
mod chain;
mod dense;
mod draws;
mod fp8;
mod heads;
mod loss;
mod paged;
mod rows;
mod twin;

#[cfg(test)]
pub(crate) use draws::logits_of_kind;
#[cfg(test)]
pub(crate) use twin::random;
pub use twin::{Check, Failure};

use keyfold_tensor::{Device, DeviceError, catch};
use twin::Twins;

/// An op's name and its checks.
type Suite = (&'static str, fn(&mut Twins));

/// All suites.
const SUITES: &[Suite] = &[
    ("add", dense::add),
    ("cast", dense::cast),
    ("linear", dense::linear),
    ("linear_heads", dense::linear_heads),
    ("linear_fused", dense::linear_fused),
    ("linear_chain", chain::products),
    ("rms_norm", rows::rms_norm),
    ("glu", rows::glu),
    ("rope", rows::rope),
    ("embedding", rows::embedding),
    ("scatter", rows::scatter),
    ("append", rows::append),
    ("fp8", fp8::rows),
    ("append_fp8", fp8::append),
    ("cross_entropy", loss::cross_entropy),
    ("adamw", loss::adamw),
    ("muon", loss::muon),
    ("tpa", heads::tpa),
    ("mla_keys", heads::mla_keys),
    ("value_map", heads::value_map),
    ("moe", heads::moe),
    ("attention", attention::attention),
    ("paged", paged::attention),
    ("cached", cached::attention),
    ("tpa_cached", cached::tpa),
    ("sample", draws::sample),
];

/// Names of what can be checked.
pub fn names() -> Vec<&'static str> {
    SUITES.iter().map(|(name, _)| *name).collect()
}

/// How much is checked: all of it by default, less for tools that look into kernels as they run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extent {
    /// Of kernels whose blocks wait for each other fewer and smaller checks: under such tools they take a thousand times as long.
    pub small: bool,
    /// Attention over pages without clusters of blocks that write to each other's shared memory, which not all tools can follow. In the
    /// whole process, from then on.
    pub lone_blocks: bool,
}

/// Runs the checks whose suite's name contains `filter`, and tells each one's outcome.
///
/// # Errors
/// When the device cannot be used, or fails.
pub fn run(
    device: Device,
    filter: &str,
    extent: Extent,
    on: &mut dyn FnMut(&Check),
) -> Result<(), DeviceError> {
    device.open()?;
    #[cfg(feature = "cuda")]
    if extent.lone_blocks {
        crate::attention::paged::cuda::without_clusters();
    }
    catch(|| {
        for (name, suite) in SUITES.iter().filter(|(name, _)| name.contains(filter)) {
            let mut twins = Twins::new(name, device, extent.small, on);
            suite(&mut twins);
        }
    })
}
