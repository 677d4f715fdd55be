use super::*;
use proptest::prelude::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn crc_of_known_bytes() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
}

/// The bytes that the Python package `tensorboard` 2.21 writes for the same events.
#[test]
fn events_of_known_bytes() {
    let cases = [
        (
            version_event(1.5),
            "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c",
        ),
        (start_event(1.5, 301), "100000000000000095fbfe1809000000000000f83f10ad023a020801d17949d4"),
        (
            scalar_event(1.5, "loss/train", 300, 2.5),
            "2100000000000000017becf609000000000000f83f10ac022a130a110a0a6c6f73732f747261696e15000020409dc3af86",
        ),
    ];
    for (event, bytes) in cases {
        assert_eq!(hex(&record(&event.0)), bytes);
    }
}

/// The payloads of an event file, after checking all checksums.
fn payloads(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    while !file.is_empty() {
        let (head, rest) = file.split_at(12);
        let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
        assert_eq!(head[8..], masked_crc(&head[..8]).to_le_bytes());
        let (payload, rest) = rest.split_at(length);
        let (crc, rest) = rest.split_at(4);
        assert_eq!(crc, masked_crc(payload).to_le_bytes());
        payloads.push(payload.to_vec());
        file = rest;
    }
    payloads
}

#[test]
fn a_resumed_run_writes_a_second_file_that_takes_back_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path().join("runs/a/tensorboard");
    let mut first = EventWriter::create(&logs, None).unwrap();
    first.scalar("loss/train", 1, 3.0).unwrap();
    let mut second = EventWriter::create(&logs, Some(1)).unwrap();
    second.scalar("loss/train", 2, f64::NAN).unwrap();
    assert_ne!(first.path, second.path);

    let first = payloads(&fs::read(&first.path).unwrap());
    assert_eq!(first.len(), 2);
    assert!(first[0].ends_with(b"brain.Event:2"));
    let second = payloads(&fs::read(&second.path).unwrap());
    assert_eq!(second.len(), 3);
    assert_eq!(second[1][9..], [0x10, 2, 0x3a, 2, 8, 1]);
}

#[test]
fn errors_name_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken");
    fs::write(&taken, "").unwrap();
    let error = EventWriter::create(&taken, None).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot write {}: ", taken.display())), "{error}");

    if let Ok(file) = OpenOptions::new().write(true).open("/dev/full") {
        let mut full = EventWriter { path: "/dev/full".into(), file };
        assert!(full.scalar("loss", 1, 1.0).unwrap_err().to_string().contains("/dev/full"));
    }
}

proptest! {
    #[test]
    fn a_varint_decodes_to_what_was_encoded(value in any::<u64>(), shift in 0_u32..64) {
        let value = value >> shift;
        let encoded = Message::default().varint(2, value).0;
        let decoded = encoded[1..].iter().rev().fold(0, |sum, &byte| sum << 7 | u64::from(byte & 0x7f));
        prop_assert_eq!(decoded, value);
        let (last, rest) = encoded[1..].split_last().unwrap();
        prop_assert!(last & 0x80 == 0);
        prop_assert!(rest.iter().all(|byte| byte & 0x80 != 0));
    }

    #[test]
    fn any_tag_makes_a_whole_record(tag in ".{0,300}", step in any::<u64>(), value in any::<f64>()) {
        let record = record(&scalar_event(0.0, &tag, step, value).0);
        prop_assert_eq!(payloads(&record).len(), 1);
    }
}
