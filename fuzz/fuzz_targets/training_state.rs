#![no_main]

use keyfold_tensor::Arena;
use keyfold_train::{config::RunConfig, run::prepare, trainer::Trainer};
use libfuzzer_sys::fuzz_target;
use std::{path::PathBuf, sync::OnceLock};

struct Valid {
    config: RunConfig,
    caches: PathBuf,
    checkpoint: PathBuf,
    state: Vec<u8>,
}

fn valid() -> &'static Valid {
    static VALID: OnceLock<Valid> = OnceLock::new();
    VALID.get_or_init(|| {
        let (mut config, caches) = (keyfold_fuzz::run_config(), keyfold_fuzz::folder().join("caches"));
        let checkpoint = keyfold_fuzz::folder().join("checkpoint");
        std::fs::create_dir_all(&checkpoint).expect("a writable folder");
        let data = prepare(&mut config, &caches).expect("a valid text");
        let mut trainer = Trainer::new(config.clone(), data, &Arena::new()).expect("a valid model");
        trainer.step().expect("an update");
        trainer.write_checkpoint(&checkpoint, 1.0).expect("a writable folder");
        let state = std::fs::read(checkpoint.join("training.json")).expect("the file just written");
        Valid { config, caches, checkpoint, state }
    })
}

fuzz_target!(|data: &[u8]| {
    let Valid { config, caches, checkpoint, state } = valid();
    keyfold_fuzz::write("checkpoint/training.json", &keyfold_fuzz::file(state, data));
    let data = prepare(&mut config.clone(), caches).expect("a valid text");
    if let Ok((mut trainer, _)) = Trainer::resume(config.clone(), data, checkpoint, &Arena::new()) {
        // The counters may be any; going on with them may fail but not panic.
        if trainer.steps_done() < config.train.steps {
            let _ = trainer.step();
        }
    }
});
