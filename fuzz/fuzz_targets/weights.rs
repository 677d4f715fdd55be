#![no_main]

use keyfold_core::DType;
use keyfold_model::{LanguageModel, ModelConfig, checkpoint};
use keyfold_tensor::Arena;
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

fn valid() -> &'static (ModelConfig, Vec<u8>) {
    static VALID: OnceLock<(ModelConfig, Vec<u8>)> = OnceLock::new();
    VALID.get_or_init(|| {
        let mut config = keyfold_fuzz::run_config().model;
        config.vocab_size = 16;
        let model = LanguageModel::new(&config, 0, &Arena::new()).expect("a valid model");
        let folder = keyfold_fuzz::folder();
        checkpoint::write_config(folder, &config, DType::Bf16).expect("a writable folder");
        checkpoint::write_weights(folder, &config, model.weights(), DType::Bf16).expect("a writable folder");
        (config, std::fs::read(folder.join(checkpoint::WEIGHTS_FILE)).expect("the file just written"))
    })
}

fuzz_target!(|data: &[u8]| {
    let (config, whole) = valid();
    keyfold_fuzz::write(checkpoint::WEIGHTS_FILE, &keyfold_fuzz::file(whole, data));
    let folder = keyfold_fuzz::folder();
    let copied = checkpoint::read_weights(folder, config, DType::F32, false, &Arena::new());
    let mapped = checkpoint::map_weights(folder, config, &Arena::new());
    assert_eq!(copied.is_ok(), mapped.is_ok());
    for weights in [copied, mapped].into_iter().flatten() {
        assert_eq!(Some(weights.count()), config.parameters().ok());
        // Every value is read: a place outside the file would show.
        assert_eq!(weights.iter().map(|(_, param)| param.value.to_vec().len()).sum::<usize>(), weights.count());
    }
});
