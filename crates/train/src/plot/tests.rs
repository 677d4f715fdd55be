use super::*;
use proptest::prelude::*;

/// Made-up losses of seven variants.
fn figure() -> Figure {
    let rows = [
        ("mha", 98_304, 2.412),
        ("mqa", 6_144, 2.503),
        ("gqa", 24_576, 2.447),
        ("mla", 13_824, 2.431),
        ("mfa", 12_288, 2.405),
        ("mfa-kr", 6_144, 2.428),
        ("tpa", 9_216, 2.421),
    ];
    let variants = rows.into_iter().enumerate().map(|(index, (name, kv_bytes_per_token, final_loss))| {
        let noise = |i: u64| ((i * 7919 + index as u64 * 104_729) % 1000) as f64 / 1000.0 - 0.5;
        let loss =
            |i: u64| final_loss + 5.5 * (-(i as f64) / (45.0 + 2.0 * index as f64)).exp() + 0.12 * noise(i);
        Variant {
            name: name.to_owned(),
            curve: (1..=1500).map(|i| (i * 2048, loss(i) + 0.6 / (1.0 + i as f64 / 150.0))).collect(),
            kv_bytes_per_token,
            final_loss,
        }
    });
    Figure {
        title: "Attention variants on stories.txt".to_owned(),
        subtitle: "6.62M parameters, 3.07M training tokens, seed 7".to_owned(),
        variants: variants.collect(),
        log_tokens: false,
    }
}

/// The plots of made-up runs, for a person to look at: `KEYFOLD_TEST_PLOTS=folder cargo test`.
#[test]
fn gallery() {
    let Some(folder) = std::env::var_os("KEYFOLD_TEST_PLOTS") else { return };
    let folder = Path::new(&folder);
    let mut crowd = figure();
    for index in 0..9 {
        let mut variant = crowd.variants[index % 7].clone();
        variant.name = format!("mfa-kr-residual-{index}");
        variant.final_loss += 0.004 * index as f64;
        crowd.variants.push(variant);
    }
    let log = Figure { log_tokens: true, ..figure() };
    let one = Figure { variants: figure().variants[..1].to_vec(), ..figure() };
    let none = Figure { variants: Vec::new(), ..figure() };
    for (name, figure) in [("seven", figure()), ("crowd", crowd), ("log", log), ("one", one), ("none", none)]
    {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        figure.write(&folder.join(name)).unwrap();
    }
}

#[test]
fn both_files_are_written_and_are_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    figure().write(folder.path()).unwrap();
    let svg = std::fs::read_to_string(folder.path().join(SVG_FILE)).unwrap();
    assert!(svg.starts_with("<svg width=\"1360\""), "{}", &svg[..200]);
    assert!(svg.trim_end().ends_with("</svg>"));
    for text in ["Attention variants on stories.txt", "mfa-kr", "16 KiB", "Tokens trained on", "2.44"] {
        assert!(svg.contains(text), "{text}");
    }
    assert!(svg.len() < 400_000, "{}", svg.len());

    let png = std::fs::read(folder.path().join(PNG_FILE)).unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(&png)).read_info().unwrap();
    assert_eq!(reader.info().width, 2720);
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    assert_eq!(pixels[..3], [255; 3]);
    // Every variant's colour is there.
    for index in 0..7 {
        let color = style::Look::of(index).color();
        assert!(pixels.chunks_exact(3).any(|pixel| pixel == [color.0, color.1, color.2]), "{index}");
    }
}

#[test]
fn the_same_figure_is_the_same_file() {
    assert_eq!(figure().to_svg().unwrap(), figure().to_svg().unwrap());
}

#[test]
fn text_cannot_break_the_svg() {
    let mut hostile = figure();
    hostile.title = "</text><script>alert(1)</script>&\0\u{1b}\"'".to_owned();
    hostile.variants[0].name = "<b>".repeat(200);
    let svg = hostile.to_svg().unwrap();
    assert!(!svg.contains("<script") && !svg.contains("<b>"));
    assert!(!svg.contains('\0') && !svg.contains('\u{1b}'));
}

#[test]
fn a_report_becomes_a_figure() {
    let mut report =
        Report { data: "stories.txt".to_owned(), tokens: 2_000_000, seed: 3, ..Report::default() };
    report.runs.push(crate::report::RunReport {
        attention: "mfa".to_owned(),
        params: 6_620_000,
        kv_bytes_per_token: 1024,
        val_loss: 2.5,
        ..Default::default()
    });
    let figure = Figure::from(&report);
    assert_eq!(figure.title, "Attention variants on stories.txt");
    assert_eq!(figure.subtitle, "6.62M parameters, 2.00M training tokens, seed 3");
    assert_eq!(figure.variants[0].kv_bytes_per_token, 1024);
}

fn hostile_number() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>(), 0.0..10.0, Just(f64::MAX), Just(f64::MIN), Just(0.0)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_figure_makes_it_panic(
        curve in proptest::collection::vec((any::<u64>(), hostile_number()), 0..8),
        kv_bytes_per_token in any::<u64>(),
        final_loss in hostile_number(),
        name in "\\PC{0,40}",
        log_tokens in any::<bool>(),
    ) {
        let variant = Variant { name, curve, kv_bytes_per_token, final_loss };
        let variants = vec![variant.clone(), variant];
        let figure = Figure { variants, log_tokens, ..figure() };
        prop_assert!(figure.to_svg().is_ok());
    }
}
