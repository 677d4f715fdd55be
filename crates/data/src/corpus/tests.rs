use proptest::prelude::*;

use super::*;

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

fn texts(corpus: &Corpus, documents: &[Document]) -> Vec<String> {
    documents.iter().map(|d| corpus.text(d).unwrap().into_owned()).collect()
}

fn open_file(name: &str, content: &[u8]) -> Result<Vec<String>> {
    let folder = folder(&[(name, content)]);
    let corpus = Corpus::open(&folder.path().join(name))?;
    corpus.documents().iter().map(|d| corpus.text(d).map(Cow::into_owned)).collect()
}

#[test]
fn separator_lines_divide_a_file() {
    let text = b"\xEF\xBB\xBFone\ntwo\n<|endoftext|>\n\nthree <|endoftext|> still\r\n<|endoftext|>\r\n<|endoftext|>\n \n";
    assert_eq!(open_file("a.txt", text).unwrap(), ["one\ntwo", "three <|endoftext|> still"]);
    assert_eq!(open_file("a.txt", b"\n whole \n\n").unwrap(), ["\n whole \n\n"]);
    assert_eq!(open_file("noname", "größe".as_bytes()).unwrap(), ["größe"]);
}

#[test]
fn json_lines_are_documents() {
    let text = b"{\"text\": \"one\\ntwo\", \"id\": 4}\n\n{\"text\":\"\\u00e9\"}";
    assert_eq!(open_file("a.jsonl", text).unwrap(), ["one\ntwo", "é"]);
    for (line, found) in
        [("{\"txt\": 1}", "missing field"), ("{\"text\": 1}", "integer"), ("hello", "expected")]
    {
        let content = format!("{{\"text\":\"fine\"}}\n\n{line}\n");
        let error = open_file("a.jsonl", content.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("a.jsonl:3:") && error.contains(found), "{error}");
    }
}

#[test]
fn what_is_not_text_is_named_with_its_offset() {
    for (content, expected) in [
        (b"abc\0def".as_slice(), "a NUL byte at byte offset 3"),
        (b"ab\xFFcd", "invalid UTF-8 at byte offset 2"),
        (b"ab\xE2\x82", "invalid UTF-8 at byte offset 2"),
    ] {
        let error = open_file("a.txt", content).unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains(expected), "{error}");
    }
    for content in [b"".as_slice(), b" \n\n", b"\xEF\xBB\xBF", b"<|endoftext|>\n<|endoftext|>"] {
        assert!(matches!(open_file("a.txt", content), Err(DataError::Empty { .. })));
    }
    let error = Corpus::open(Path::new("tinyshakespeare")).unwrap_err().to_string();
    assert!(error.contains("no such file"), "{error}");
}

#[test]
fn offsets_are_right_beyond_the_first_block() {
    // 3-byte characters, so that block borders fall inside of them.
    let mut content = "東".repeat(3_000_000).into_bytes();
    assert_eq!(open_file("a.txt", &content).unwrap()[0].len(), content.len());
    content[8_000_001] = b'a';
    let error = open_file("a.txt", &content).unwrap_err().to_string();
    assert!(error.contains("byte offset 8000002"), "{error}");
}

#[test]
fn folders_are_read_in_order_and_report_what_they_leave_out() {
    let folder = folder(&[
        ("b.txt", b"bee"),
        ("a/z.md", b"zed"),
        ("a/b.jsonl", b"{\"text\":\"line\"}"),
        ("picture.png", b"\x89PNG\0"),
        (".hidden", b"secret"),
        ("empty.txt", b""),
        ("LICENSE", b"free"),
    ]);
    let corpus = Corpus::open(folder.path()).unwrap();
    assert_eq!(texts(&corpus, corpus.documents()), ["free", "line", "zed", "bee"]);
    let mut skipped: Vec<_> =
        corpus.skipped().iter().map(|s| s.path.file_name().unwrap().to_owned()).collect();
    skipped.sort();
    assert_eq!(skipped, [".hidden", "empty.txt", "picture.png"]);

    std::fs::write(folder.path().join("broken.txt"), b"\0").unwrap();
    assert!(matches!(Corpus::open(folder.path()), Err(DataError::NotText { .. })));
    assert!(matches!(Corpus::open(tempfile::tempdir().unwrap().path()), Err(DataError::Empty { .. })));
}

#[cfg(unix)]
#[test]
fn circles_of_links_end() {
    let folder = folder(&[("a.txt", b"text")]);
    std::os::unix::fs::symlink(folder.path(), folder.path().join("again")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("a.txt"), folder.path().join("b.txt")).unwrap();
    let corpus = Corpus::open(folder.path()).unwrap();
    assert_eq!((corpus.documents().len(), corpus.skipped().len()), (2, 1));
}

#[test]
fn the_fingerprint_follows_content_and_names() {
    let print = |name: &str, content: &[u8]| {
        let folder = folder(&[(name, content)]);
        *Corpus::open(folder.path()).unwrap().fingerprint()
    };
    assert_eq!(print("a.txt", b"one"), print("a.txt", b"one"));
    assert_ne!(print("a.txt", b"one"), print("a.txt", b"two"));
    assert_ne!(print("a.txt", b"one"), print("b.txt", b"one"));
}

#[test]
fn many_documents_are_split_by_document() {
    let content = (0..1000).map(|i| format!("document {i}\n<|endoftext|>\n")).collect::<String>();
    let folder = folder(&[("a.txt", content.as_bytes())]);
    let corpus = Corpus::open(folder.path()).unwrap();
    let split = corpus.split(0.1).unwrap();
    assert!((60..140).contains(&split.validation.len()), "{}", split.validation.len());
    let mut all = texts(&corpus, &split.train);
    all.extend(texts(&corpus, &split.validation));
    all.sort();
    let mut expected = texts(&corpus, corpus.documents());
    expected.sort();
    assert_eq!(all, expected);
    assert_eq!(corpus.split(0.1).unwrap(), split);
    for wrong in [0.0, -1.0, 0.9, f64::NAN] {
        assert!(matches!(corpus.split(wrong), Err(DataError::Range { .. })));
    }
}

#[test]
fn few_documents_are_split_at_a_line_near_the_end() {
    let lines: String = (0..100).map(|i| format!("line {i}\n")).collect();
    for name in ["a.txt", "a.jsonl"] {
        let content = if name.ends_with('l') {
            serde_json::json!({ "text": lines }).to_string()
        } else {
            lines.clone()
        };
        let folder = folder(&[(name, content.as_bytes())]);
        let corpus = Corpus::open(folder.path()).unwrap();
        let split = corpus.split(0.1).unwrap();
        let (train, validation) =
            (texts(&corpus, &split.train).concat(), texts(&corpus, &split.validation).concat());
        assert_eq!(format!("{train}{validation}"), lines);
        assert!(
            train.ends_with('\n') && (2..20).contains(&validation.lines().count()),
            "{name}: {validation}"
        );
    }
    let corpus = folder(&[("a", b"one two"), ("b", b"three"), ("c", b"four five six")]);
    let corpus = Corpus::open(corpus.path()).unwrap();
    let split = corpus.split(0.1).unwrap();
    assert_eq!(texts(&corpus, &split.train), ["one two", "three", "four five "]);
    assert_eq!(texts(&corpus, &split.validation), ["six"]);
    let tiny = folder(&[("a", b"x")]);
    assert!(matches!(Corpus::open(tiny.path()).unwrap().split(0.1), Err(DataError::Empty { .. })));
}

#[test]
fn samples_are_bounded_and_spread() {
    let content: String = (0..40_000).map(|i| format!("line number {i}\n")).collect();
    let folder = folder(&[("a.txt", content.as_bytes())]);
    let corpus = Corpus::open(folder.path()).unwrap();
    let sample = corpus.sample(corpus.documents(), 200_000).unwrap();
    let size: usize = sample.iter().map(String::len).sum();
    assert!((150_000..=210_000).contains(&size), "{size}");
    assert!(sample[0].starts_with("line number 0\n"));
    assert!(sample.last().unwrap().contains("line number 3"));
    let whole = corpus.sample(corpus.documents(), 1 << 30).unwrap().concat();
    assert_eq!(whole, content);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_are_text_or_an_error(content in prop::collection::vec(any::<u8>(), 0..200), json: bool) {
        let _ = open_file(if json { "a.jsonl" } else { "a.txt" }, &content);
    }

    #[test]
    fn a_tail_split_loses_nothing(text in "[a-c é東\n]{2,80}", fraction in 0.01f64..0.5) {
        let folder = folder(&[("a.txt", text.as_bytes())]);
        if let Ok(corpus) = Corpus::open(folder.path())
            && let Ok(split) = corpus.split(fraction)
        {
            let both = [texts(&corpus, &split.train).concat(), texts(&corpus, &split.validation).concat()].concat();
            prop_assert_eq!(both, text);
        }
    }
}
