#![no_main]

use keyfold_model::checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    keyfold_fuzz::write(checkpoint::CONFIG_FILE, data);
    if let Ok(config) = checkpoint::read_config(keyfold_fuzz::folder()) {
        assert!(config.validate().is_ok());
        assert!(config.parameters().is_ok());
    }
});
