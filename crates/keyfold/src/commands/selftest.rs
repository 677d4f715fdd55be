//! `keyfold selftest`: a device's kernels against the host's.

use super::print_line;
use keyfold_ops::selftest;
use keyfold_tensor::Device;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the ops whose names contain this.
    #[arg(long, value_name = "NAME", default_value = "")]
    op: String,
    /// Print every check, not only those that fail.
    #[arg(long)]
    verbose: bool,
}

pub(crate) fn run(args: &Args, device: Device) -> anyhow::Result<()> {
    anyhow::ensure!(
        selftest::names().iter().any(|name| name.contains(&args.op)),
        "--op {}: expected a part of one of {}",
        args.op,
        selftest::names().join(", ")
    );
    anyhow::ensure!(
        device != Device::Cpu,
        "selftest compares a device with the host: name one, with --device cuda"
    );
    device.open()?;
    print_line(format_args!("{device}: {}", device.describe()))?;
    let (mut ops, mut failed) = (Vec::<(&str, usize, usize, f64)>::new(), 0);
    let mut wrong = Ok(());
    selftest::run(device, &args.op, &mut |check| {
        if ops.last().is_none_or(|(op, ..)| *op != check.op) {
            ops.push((check.op, 0, 0, 0.0));
        }
        if let Some((_, all, bad, worst)) = ops.last_mut() {
            *all += 1;
            *bad += usize::from(check.failure.is_some());
            *worst = worst.max(check.error / check.limit.max(f64::MIN_POSITIVE));
        }
        failed += usize::from(check.failure.is_some());
        if wrong.is_ok() && (args.verbose || check.failure.is_some()) {
            wrong = print_line(check);
        }
    })?;
    wrong?;
    for (op, all, bad, worst) in &ops {
        print_line(format_args!(
            "{op:16} {all:5} checks, {bad} failed, largest error {worst:.2} of its limit"
        ))?;
    }
    anyhow::ensure!(failed == 0, "{failed} checks failed on {device}");
    print_line("all checks passed")
}
