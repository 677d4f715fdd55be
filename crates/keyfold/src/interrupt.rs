//! Ctrl-C: the first asks the work to stop at a good point, the second ends the process.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// What a shell expects of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// A flag that becomes true at the first Ctrl-C (or SIGTERM).
pub(crate) fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = flag.clone();
    ctrlc::set_handler(move || {
        if seen.swap(true, Relaxed) {
            std::process::exit(INTERRUPTED);
        }
        eprintln!("\nstopping after this step; press Ctrl-C again to stop at once");
    })?;
    Ok(flag)
}

/// Ctrl-C in a conversation: stops an answer, and only between answers, twice, the program.
#[derive(Debug, Default)]
pub(crate) struct Answering {
    busy: AtomicBool,
    pressed: AtomicBool,
}

impl Answering {
    /// Takes Ctrl-C over from now on.
    pub(crate) fn watch() -> anyhow::Result<Arc<Self>> {
        let state = Arc::new(Self::default());
        let seen = state.clone();
        ctrlc::set_handler(move || {
            if seen.pressed.swap(true, Relaxed) {
                std::process::exit(INTERRUPTED);
            }
            if !seen.busy.load(Relaxed) {
                eprintln!("\npress Ctrl-C again or write /exit to leave");
            }
        })?;
        Ok(state)
    }

    /// An answer begins (or ends): what was pressed before no longer counts.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Relaxed);
        self.pressed.store(false, Relaxed);
    }

    /// Becomes true when the answer is to stop.
    pub(crate) fn stopped(&self) -> &AtomicBool {
        &self.pressed
    }
}
