use proptest::prelude::*;

use super::*;
use crate::corpus::Corpus;

const TEXT: [u8; 32] = [7; 32];

fn corpus(content: &str) -> (tempfile::TempDir, Corpus) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    std::fs::write(&path, content).unwrap();
    let corpus = Corpus::open(&path).unwrap();
    (folder, corpus)
}

fn cached(content: &str, tokenizer: &Tokenizer) -> (tempfile::TempDir, PathBuf) {
    let (folder, corpus) = corpus(content);
    let path = folder.path().join("cache/tokens.bin");
    write(&path, &corpus, corpus.documents(), tokenizer, &TEXT).unwrap();
    (folder, path)
}

fn all(file: &TokenFile) -> Vec<u32> {
    let mut ids = Vec::new();
    file.read(0, file.tokens() as usize, &mut ids);
    ids
}

#[test]
fn what_is_written_is_read() {
    let tokenizer = Tokenizer::bytes();
    let (_folder, path) = cached("ab\n<|endoftext|>\nc\n<|endoftext|>\ndé", &tokenizer);
    let file = TokenFile::open(&path, &tokenizer, &TEXT).unwrap();
    assert_eq!(all(&file), [97, 98, 256, 99, 256, 100, 0xC3, 0xA9, 256]);
    assert_eq!((file.tokens(), file.documents(), file.text_bytes()), (9, 3, 6));
    assert_eq!([0, 1, 2, 3, 9].map(|d| file.document_start(d)), [0, 3, 5, 9, 9]);
    assert_eq!([0, 2, 3, 4, 5, 8, 99].map(|t| file.document_of(t)), [0, 0, 1, 1, 2, 2, 2]);
    let mut some = Vec::new();
    file.read(7, 100, &mut some);
    file.read(u64::MAX, usize::MAX, &mut some);
    assert_eq!(some, [0xA9, 256]);
}

#[test]
fn long_documents_are_tokenised_as_a_whole() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tinyshakespeare.txt");
    let Ok(text) = std::fs::read_to_string(path) else {
        eprintln!("skipped: no tinyshakespeare.txt beside the repository");
        return;
    };
    let tokenizer = Tokenizer::train(512, text[..200_000].split_inclusive('\n')).unwrap();
    let (_folder, path) = cached(&text, &tokenizer);
    let file = TokenFile::open(&path, &tokenizer, &TEXT).unwrap();
    let mut expected = tokenizer.encode(&text).unwrap();
    expected.push(tokenizer.eos());
    assert_eq!(all(&file), expected);
    assert_eq!((file.documents(), file.text_bytes()), (1, text.len() as u64));
}

#[test]
fn caches_of_something_else_are_refused() {
    let tokenizer = Tokenizer::bytes();
    let (_folder, path) = cached("some text", &tokenizer);
    let other = Tokenizer::train(300, std::iter::once("some text some text")).unwrap();
    let field = |tokenizer: &Tokenizer, text: &[u8; 32]| match TokenFile::open(&path, tokenizer, text) {
        Err(DataError::Cache { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&other, &TEXT), "tokenizer");
    assert_eq!(field(&tokenizer, &[8; 32]), "text");
    assert!(matches!(TokenFile::open(Path::new("absent"), &tokenizer, &TEXT), Err(DataError::Io { .. })));
}

#[test]
fn every_kind_of_damage_is_found() {
    let tokenizer = Tokenizer::bytes();
    let (_folder, path) = cached("ab\n<|endoftext|>\ncd", &tokenizer);
    let good = std::fs::read(&path).unwrap();
    let field = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bad = good.clone();
        change(&mut bad);
        std::fs::write(&path, &bad).unwrap();
        match TokenFile::open(&path, &tokenizer, &TEXT) {
            Err(DataError::Cache { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    let put =
        |at: usize, value: u64| move |b: &mut Vec<u8>| b[at..at + 8].copy_from_slice(&value.to_le_bytes());
    assert_eq!(field(&|b| b.clear()), "header");
    assert_eq!(field(&|b| b.truncate(127)), "header");
    assert_eq!(field(&|b| b[0] = b'X'), "magic");
    assert_eq!(field(&|b| b[8] = 9), "version");
    assert_eq!(field(&|b| b[12] = 4), "id width");
    assert_eq!(field(&|b| b[16] = 0), "vocabulary size");
    assert_eq!(field(&|b| b[20] = 1), "end token");
    for huge in [u64::MAX, u64::MAX / 2, 1 << 62, 70] {
        assert_eq!(field(&put(24, huge)), "length");
        assert_eq!(field(&put(32, huge)), "length");
    }
    assert_eq!(field(&|b| b.push(0)), "length");
    assert_eq!(field(&|b| b.truncate(good.len() - 1)), "length");
    assert_eq!(field(&|b| b[129] = 2), "token ids");
    let table = good.len() - 24;
    assert_eq!(field(&put(table, 1)), "documents");
    assert_eq!(field(&put(table + 8, 0)), "documents");
    assert_eq!(field(&put(table + 8, u64::MAX)), "documents");
    assert_eq!(field(&put(table + 16, 5)), "documents");
}

#[test]
fn failures_leave_the_old_file_and_no_rubbish() {
    let tokenizer = Tokenizer::bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens.bin");
    std::fs::write(&path, "old").unwrap();
    let source = folder.path().join("a.jsonl");
    std::fs::write(&source, "{\"text\":\"fine\"}\nbroken").unwrap();
    let corpus = Corpus::open(&source).unwrap();
    let error = write(&path, &corpus, corpus.documents(), &tokenizer, &TEXT).unwrap_err();
    assert!(matches!(error, DataError::JsonLine { line: 2, .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_file_opens_or_is_refused(at in 0usize..300, with: u8, cut in 0usize..300) {
        let tokenizer = Tokenizer::bytes();
        let (_folder, path) = cached("one\n<|endoftext|>\ntwo\n<|endoftext|>\nthree", &tokenizer);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at % bytes.len();
        bytes[at] = with;
        if cut < bytes.len() && cut % 3 == 0 {
            bytes.truncate(cut);
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(file) = TokenFile::open(&path, &tokenizer, &TEXT) {
            prop_assert!(all(&file).iter().all(|&id| id < 257));
            for token in 0..file.tokens() {
                let document = file.document_of(token);
                prop_assert!(file.document_start(document) <= token && token < file.document_start(document + 1));
            }
        }
    }

    #[test]
    fn pieces_join_to_the_text(text in "[a-z é東\n.]{0,200}", limit in 0usize..40) {
        let parts: Vec<&str> = pieces(&text, limit).collect();
        prop_assert!(parts.iter().all(|p| !p.is_empty() && p.len() <= limit.max(4)));
        prop_assert_eq!(parts.concat(), text);
    }
}
