use std::collections::HashSet;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::cache::{self, TokenFile};
use crate::corpus::Corpus;

/// A cache of documents of random letters.
fn text_rows(documents: usize, length: usize, seq_len: usize, seed: Option<u64>) -> Result<TextRows> {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..documents)
        .map(|d| {
            (0..length)
                .map(|i| char::from(b'!' + (crate::mix::mix2(d as u64, i as u64) % 90) as u8))
                .collect::<String>()
                + "\n<|endoftext|>\n"
        })
        .collect();
    let source = folder.path().join("a.txt");
    std::fs::write(&source, text).unwrap();
    let corpus = Corpus::open(&source).unwrap();
    let tokenizer = Arc::new(Tokenizer::bytes());
    let path = folder.path().join("tokens.bin");
    cache::write(&path, &corpus, corpus.documents(), &tokenizer, &[0; 32]).unwrap();
    let file = Arc::new(TokenFile::open(Path::new(&path), &tokenizer, &[0; 32]).unwrap());
    match seed {
        Some(seed) => TextRows::shuffled(file, tokenizer, seq_len, true, seed),
        None => TextRows::in_order(file, tokenizer, seq_len, true),
    }
}

fn sampler(documents: usize, length: usize, seq_len: usize, seed: u64) -> Sampler {
    Sampler::new(Rows::Text(text_rows(documents, length, seq_len, Some(seed)).unwrap()))
}

#[test]
fn a_pass_takes_every_row_once() {
    let mut s = sampler(30, 40, 16, 3);
    let rows = s.rows().count(0);
    let stream = {
        let Rows::Text(rows) = s.rows() else { panic!() };
        let mut ids = Vec::new();
        rows.file().read(0, usize::MAX, &mut ids);
        ids
    };
    let mut seen = HashSet::new();
    for _ in 0..rows {
        let batch = s.next_batch(1).unwrap();
        assert_eq!(&batch.inputs[1..], &batch.targets[..15]);
        let whole: Vec<u32> = batch.inputs.iter().chain(&batch.targets[15..]).copied().collect();
        let at: Vec<usize> =
            stream.windows(17).enumerate().filter(|(_, w)| *w == whole).map(|(i, _)| i).collect();
        assert!(!at.is_empty());
        seen.insert(at);
    }
    assert_eq!((s.state().epoch, s.state().position), (0, rows));
    assert_eq!(seen.len() as u64, rows);
    s.next_batch(1).unwrap();
    assert_eq!((s.state().epoch, s.state().position), (1, 1));
}

#[test]
fn orders_differ_by_pass_and_seed() {
    let order = |seed, skip: u64| {
        let mut s = sampler(30, 40, 16, seed);
        (0..skip * s.rows().count(0)).for_each(|_| drop(s.next_batch(1).unwrap()));
        (0..10).map(|_| s.next_batch(1).unwrap().inputs).collect::<Vec<_>>()
    };
    assert_eq!(order(1, 0), order(1, 0));
    assert_ne!(order(1, 0), order(2, 0));
    assert_ne!(order(1, 0), order(1, 1));
}

#[test]
fn documents_are_marked() {
    let rows = text_rows(5, 6, 10, None).unwrap();
    // Documents of 7 tokens, rows of 10.
    let starts = |p| rows.row(0, p).unwrap().doc_starts;
    assert_eq!(starts(0), [0, 0, 0, 0, 0, 0, 0, 7, 7, 7]);
    assert_eq!(starts(1), [0, 0, 0, 0, 4, 4, 4, 4, 4, 4]);
    let last = rows.row(0, 3).unwrap();
    assert_eq!((last.counted, last.tokens.len()), (4, 11));
    assert_eq!(last.doc_starts, [0, 0, 0, 0, 4, 5, 5, 5, 5, 5]);
    let batch = Rows::Text(rows).batch(&[(0, 2), (0, 3)]).unwrap();
    assert_eq!(batch.counted_targets(), 14);
    assert_eq!(batch.loss_mask.as_ref().unwrap().iter().filter(|&&m| !m).count(), 6);
    assert!(batch.recall.is_none() && batch.answered(&batch.targets).is_empty());
}

#[test]
fn too_little_text_and_wrong_states_are_errors() {
    assert!(matches!(text_rows(1, 10, 11, Some(1)), Err(DataError::TooShort { needed: 12, found: 11, .. })));
    assert!(text_rows(1, 10, 10, Some(1)).is_ok());
    assert!(matches!(text_rows(1, 10, 0, None), Err(DataError::Range { .. })));
    let mut s = sampler(30, 40, 16, 3);
    assert!(matches!(s.next_batch(0), Err(DataError::Range { .. })));
    let good = s.state().clone();
    let field = |s: &mut Sampler, state: SamplerState| match s.restore(&state) {
        Err(DataError::State { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&mut s, SamplerState { data: "other".into(), ..good.clone() }), "data");
    assert_eq!(field(&mut s, SamplerState { seed: 4, ..good.clone() }), "seed");
    assert_eq!(field(&mut s, SamplerState { position: u64::MAX, ..good.clone() }), "position");
    assert_eq!(field(&mut s, SamplerState { epoch: u64::MAX, ..good.clone() }), "position");
    let other = sampler(30, 41, 16, 3);
    assert_eq!(field(&mut s, other.state().clone()), "data");
    s.restore(&good).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn resuming_equals_continuing(
        seed: u64, documents in 1usize..20, seq_len in 1usize..30, batch in 1usize..9, before in 0usize..30,
    ) {
        let mut a = sampler(documents, 40, seq_len, seed);
        for _ in 0..before {
            a.next_batch(batch).unwrap();
        }
        let mut b = sampler(documents, 40, seq_len, seed);
        b.restore(a.state()).unwrap();
        for size in [batch, 1, batch + 3] {
            prop_assert_eq!(a.next_batch(size).unwrap(), b.next_batch(size).unwrap());
        }
        prop_assert_eq!(a.state(), b.state());
        prop_assert_eq!(a.epochs(), b.epochs());
    }

    #[test]
    fn batches_have_their_shape(documents in 1usize..9, seq_len in 1usize..60, batch in 1usize..5) {
        let rows = text_rows(documents, 30, seq_len, None).unwrap();
        let count = rows.count(0);
        let places: Vec<(u64, u64)> = (0..count).map(|p| (0, p)).collect();
        let rows = Rows::Text(rows);
        let mut counted = 0;
        for some in places.chunks(batch) {
            let b = rows.batch(some).unwrap();
            prop_assert_eq!((b.batch, b.seq_len), (some.len(), seq_len));
            for part in [&b.inputs, &b.targets, &b.doc_starts] {
                prop_assert_eq!(part.len(), some.len() * seq_len);
            }
            prop_assert!(b.doc_starts.iter().enumerate().all(|(i, &s)| s as usize <= i % seq_len));
            counted += b.counted_targets();
        }
        prop_assert_eq!(counted, documents * 31 - 1);
    }
}
