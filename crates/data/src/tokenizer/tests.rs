use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn sample() -> String {
    let story =
        "The baker Mira kept a brass lantern under the bridge. \"Why?\" asked Tobin, who couldn't see it.\n";
    let mut text = story.repeat(40);
    text.push_str("Größe, naïve café — 東京 🦀 12345\n");
    text.repeat(4)
}

fn small_bpe() -> Tokenizer {
    let text = sample();
    Tokenizer::train(400, text.lines()).unwrap()
}

fn shakespeare() -> Option<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tinyshakespeare.txt");
    let text = std::fs::read_to_string(path).ok();
    if text.is_none() {
        eprintln!("skipped: no tinyshakespeare.txt beside the repository");
    }
    text
}

#[test]
fn specs_round_trip_and_reject_nonsense() {
    for text in ["bytes", "bpe:4096", "bpe:257", "some/folder/tokenizer.json"] {
        assert_eq!(text.parse::<TokenizerSpec>().unwrap().to_string(), text);
        let json = format!("\"{text}\"");
        let spec: TokenizerSpec = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&spec).unwrap(), json);
    }
    for text in ["", " ", "bpe:", "bpe:12", "bpe:-1", "bpe:99999999999999999999", "bpe:1048577", "bpe:4k"] {
        let error = text.parse::<TokenizerSpec>().unwrap_err().to_string();
        assert!(error.contains("tokenizer") && error.contains(text), "{error}");
    }
}

#[test]
fn byte_ids_are_byte_values() {
    let t = Tokenizer::bytes();
    assert_eq!((t.vocab_size(), t.eos()), (257, 256));
    assert_eq!(t.encode("aé").unwrap(), [97, 0xC3, 0xA9]);
    assert_eq!(t.decode(&[97, 256, 0xC3, 0xA9, 0xC3, 999]), "aé\u{FFFD}\u{FFFD}");
    assert_eq!(t.byte_count(&[97, 256, 0xC3, 999]), 2);
}

#[test]
fn special_tokens_are_only_made_on_request() {
    for t in [Tokenizer::bytes(), small_bpe()] {
        let text = "one<|endoftext|>two<|endoftext|>";
        let plain = t.encode(text).unwrap();
        assert!(!plain.contains(&t.eos()));
        assert_eq!(t.decode(&plain), text);
        let special = t.encode_with_specials(text).unwrap();
        assert_eq!(special.iter().filter(|&&id| id == t.eos()).count(), 2);
        assert_eq!(t.decode(&special), "onetwo");
        assert_eq!(t.special(crate::END_OF_TEXT), Some(t.eos()));
        assert_eq!(t.special("<|nothing|>"), None);
    }
}

#[test]
fn saved_tokenizers_read_back_the_same() {
    for t in [Tokenizer::bytes(), small_bpe()] {
        let folder = tempfile::tempdir().unwrap();
        t.save(folder.path()).unwrap();
        let again = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(again.is_bytes(), t.is_bytes());
        assert_eq!((again.vocab_size(), again.eos(), again.hash()), (t.vocab_size(), t.eos(), t.hash()));
        let text = sample();
        assert_eq!(again.encode(&text).unwrap(), t.encode(&text).unwrap());
        assert_eq!(t.decode(&t.encode(&text).unwrap()), text);

        // What another program sees when it opens the file.
        let library = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let text = format!("{text}<|endoftext|>and more");
        let theirs = library.encode(text.as_str(), true).unwrap().get_ids().to_vec();
        assert_eq!(theirs, t.encode_with_specials(&text).unwrap());
        assert_eq!(library.decode(&theirs, true).unwrap(), t.decode(&theirs));
    }
}

#[test]
fn training_is_deterministic_and_fills_the_vocabulary() {
    let Some(text) = shakespeare() else { return };
    let train = || Tokenizer::train(1024, text.split_inclusive("\n\n")).unwrap();
    let (a, b) = (train(), train());
    assert_eq!(a.vocab_size(), 1024);
    assert_eq!(a.hash(), b.hash());
    let ids = a.encode(&text[..100_000]).unwrap();
    assert_eq!(a.byte_count(&ids), 100_000);
    assert!(ids.len() < 50_000, "{} tokens for 100,000 bytes", ids.len());
    assert_eq!(a.decode(&ids), &text[..100_000]);
}

#[test]
fn a_tiny_text_gives_a_smaller_vocabulary() {
    let t = Tokenizer::train(4096, std::iter::once("abc")).unwrap();
    assert_eq!(t.vocab_size(), 257);
    assert_eq!(t.decode(&t.encode("wholly new ☃").unwrap()), "wholly new ☃");
    assert!(matches!(Tokenizer::train(256, std::iter::empty()), Err(DataError::Range { .. })));
}

#[test]
fn broken_files_give_errors_that_name_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    assert!(matches!(Tokenizer::load(&path), Err(DataError::Io { .. })));
    for content in ["", "{", "[]", "null", "{\"version\":\"1.0\"}", "\u{0}\u{0}"] {
        std::fs::write(&path, content).unwrap();
        let error = Tokenizer::load(&path).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
    // A word-level tokenizer is valid for the library and useless here.
    let words = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"日":0,"<|endoftext|>":1},"unk_token":"日"}}"#;
    std::fs::write(&path, words).unwrap();
    let error = Tokenizer::load(&path).unwrap_err().to_string();
    assert!(error.contains("byte-level"), "{error}");
}

#[test]
fn a_template_with_a_token_that_is_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    small_bpe().save(folder.path()).unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut file: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let special = json!({"SpecialToken": {"id": "<begin>", "type_id": 0}});
    let mut write = |tokens: Value| {
        file["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": tokens,
        });
        std::fs::write(&path, file.to_string()).unwrap();
        Tokenizer::load(&path)
    };
    let whole = write(json!({"<begin>": {"id": "<begin>", "ids": [3], "tokens": ["<begin>"]}})).unwrap();
    assert_eq!(whole.encode_sequence("a").unwrap()[0], 3);
    let error = write(json!({})).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("inconsistent"), "{error}");
    let far = json!({"<begin>": {"id": "<begin>", "ids": [9_999_999], "tokens": ["<begin>"]}});
    let error = write(far).unwrap_err().to_string();
    assert!(error.contains("the token 9999999 beside a text"), "{error}");
}

#[test]
fn the_end_token_comes_from_the_config_beside() {
    let folder = tempfile::tempdir().unwrap();
    small_bpe().save(folder.path()).unwrap();
    let config = folder.path().join("tokenizer_config.json");
    std::fs::write(&config, r#"{"eos_token": {"content": "a"}}"#).unwrap();
    let t = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(t.token_bytes(t.eos()), Some(b"a".as_slice()));
    std::fs::write(&config, r#"{"eos_token": "<absent>"}"#).unwrap();
    assert!(Tokenizer::load(folder.path()).unwrap_err().to_string().contains("<absent>"));
}

/// A tokenizer of the SentencePiece kind: spaces marked, a token for every byte. `before`: a space goes before every text.
fn characters(before: bool) -> String {
    let mut vocab = serde_json::Map::new();
    for special in ["<pad>", "</s>", "<s>", "<unk>"] {
        vocab.insert(special.into(), vocab.len().into());
    }
    for byte in 0..=255u8 {
        vocab.insert(format!("<0x{byte:02X}>"), vocab.len().into());
    }
    for token in ["\u{2581}", "a", "b", "c", "\u{2581}a", "ab", "\n\n", "é", "<b>"]
        .iter()
        .map(|token| token.to_string())
        .chain((b'!'..=b'~').map(|byte| char::from(byte).to_string()))
    {
        let next = vocab.len();
        vocab.entry(token).or_insert(next.into());
    }
    let added = |content: &str, special: bool| {
        serde_json::json!({"id": vocab[content], "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": special})
    };
    let replace = |from: &str, to: &str| serde_json::json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", "\u{2581}")];
    let mut decoders = vec![
        replace("\u{2581}", " "),
        serde_json::json!({"type": "ByteFallback"}),
        serde_json::json!({"type": "Fuse"}),
    ];
    if before {
        normalizers.insert(0, serde_json::json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(serde_json::json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let bos = serde_json::json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
    let added: Vec<_> = [("<pad>", true), ("</s>", true), ("<s>", true), ("<unk>", true), ("<b>", false)]
        .map(|(content, special)| added(content, special))
        .into();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": [["\u{2581}", "a"], ["a", "b"]]},
    })
    .to_string()
}

#[test]
fn characters_with_byte_fallback_are_read_as_the_library_reads_them() {
    for before in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), characters(before)).unwrap();
        let t = Tokenizer::load(folder.path()).unwrap();
        let library = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        assert_eq!((t.eos(), t.sequence_prefix().unwrap()), (1, vec![2]));
        for text in ["a ab  c", " leading", "", "é東🦀\n\n<b>x", "cab <b> a", "tab\tand ~"] {
            let ids = t.encode(text).unwrap();
            assert_eq!(ids, library.encode(text, false).unwrap().get_ids(), "{text}");
            assert_eq!(library.decode(&ids, true).unwrap(), t.decode(&ids));
            let extra = usize::from(before && !text.is_empty());
            // An added token splits the text, and each part gets its own space.
            if !(before && text.contains("<b>")) {
                assert_eq!(t.decode(&ids), text);
                assert_eq!(t.byte_count(&ids), (text.len() + extra) as u64, "{text}");
            }
            let whole = t.encode_sequence(text).unwrap();
            assert_eq!(whole, library.encode(text, true).unwrap().get_ids(), "{text}");
            assert_eq!(whole[0], 2);
        }
        let text = "<s>a</s>";
        assert_eq!(t.decode(&t.encode(text).unwrap()), text);
        let markup = t.encode_with_specials(text).unwrap();
        assert_eq!(markup, library.encode(text, false).unwrap().get_ids());
        assert_eq!((markup[0], *markup.last().unwrap()), (2, 1));
    }
}

#[test]
fn a_broken_tokenizer_config_is_refused_by_key() {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::bytes().save(folder.path()).unwrap();
    for (content, told) in [("{", "expected a JSON object"), (r#"{"eos_token": 7}"#, "`eos_token` is 7")] {
        std::fs::write(folder.path().join("tokenizer_config.json"), content).unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json") && error.contains(told), "{error}");
    }
}

/// Ids of real tokenizers against those that `transformers` made, when they are there.
#[test]
fn real_tokenizers_read_references_as_transformers_does() {
    let Some(models) = std::env::var_os("KEYFOLD_REAL_MODELS") else {
        eprintln!("skipped: KEYFOLD_REAL_MODELS names no folder of real models");
        return;
    };
    for entry in std::fs::read_dir(models).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(reference) = std::fs::read_to_string(folder.join("reference.json")) else { continue };
        let reference: serde_json::Value = serde_json::from_str(&reference).unwrap();
        let greedy: Vec<u32> = serde_json::from_value(reference["greedy"].clone()).unwrap();
        let t = Tokenizer::load(&folder).unwrap();
        let text = reference["text"].as_str().unwrap();
        assert_eq!(t.encode_with_specials(text).unwrap(), greedy, "{}", folder.display());
        let plain = &greedy[t.sequence_prefix().unwrap().len()..];
        assert_eq!(t.encode_sequence(&t.decode(plain)).unwrap(), greedy, "{}", folder.display());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_text_round_trips(text in "\\PC{0,60}|[ \\n\\ta-zA-Z'é東🦀<|>]{0,80}") {
        for t in [Tokenizer::bytes(), small_bpe()] {
            let ids = t.encode(&text).unwrap();
            prop_assert_eq!(t.decode(&ids), text.clone());
            prop_assert_eq!(t.byte_count(&ids), text.len() as u64);
        }
    }

    #[test]
    fn streaming_equals_decoding(ids in prop::collection::vec(0u32..270, 0..60)) {
        let t = Tokenizer::bytes();
        let mut stream = StreamDecoder::new();
        let mut text: String = ids.iter().map(|&id| stream.push(&t, id)).collect();
        text.push_str(&stream.finish());
        prop_assert_eq!(text, t.decode(&ids));
        prop_assert_eq!(stream.finish(), "");
    }

    #[test]
    fn streaming_never_shows_half_a_character(text in "[é東🦀a]{0,20}") {
        let t = Tokenizer::bytes();
        let mut stream = StreamDecoder::new();
        for id in t.encode(&text).unwrap() {
            prop_assert!(!stream.push(&t, id).contains(char::REPLACEMENT_CHARACTER));
        }
        prop_assert_eq!(stream.finish(), "");
    }

    #[test]
    fn damaged_files_never_panic(at in 0usize..20_000, with: u8) {
        let folder = tempfile::tempdir().unwrap();
        Tokenizer::bytes().save(folder.path()).unwrap();
        let path = folder.path().join("tokenizer.json");
        let mut content = std::fs::read(&path).unwrap();
        let at = at % content.len();
        content[at] = with;
        std::fs::write(&path, &content).unwrap();
        let _ = Tokenizer::load(&path).map(|t| t.encode("some text"));
        std::fs::write(&path, &content[..at]).unwrap();
        prop_assert!(Tokenizer::load(&path).is_err());
    }
}
