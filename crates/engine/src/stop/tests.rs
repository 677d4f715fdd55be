use super::*;
use proptest::prelude::*;

/// All text shown when `pieces` come one by one, and whether a string came.
fn shown(strings: &[&str], pieces: &[&str]) -> (String, bool) {
    let mut stop = StopStrings::new(strings.iter().map(|string| (*string).to_owned()).collect());
    let mut all = String::new();
    for piece in pieces {
        let (text, came) = stop.push(piece);
        all += &text;
        if came {
            return (all, true);
        }
    }
    (all + &stop.finish(), false)
}

#[test]
fn a_string_is_found_across_pieces() {
    assert_eq!(shown(&["END"], &["a E", "N", "D b"]), ("a ".to_owned(), true));
    assert_eq!(shown(&["END"], &["a EN", "EN", "D"]), ("a EN".to_owned(), true));
    assert_eq!(shown(&["END"], &["a EN"]), ("a EN".to_owned(), false));
    assert_eq!(shown(&["aab"], &["a", "a", "a", "b"]), ("a".to_owned(), true));
    assert_eq!(shown(&["é!"], &["caf", "é", "?"]), ("café?".to_owned(), false));
}

#[test]
fn the_first_of_several_counts() {
    assert_eq!(shown(&["yz", "xy"], &["wxyz"]), ("w".to_owned(), true));
    assert_eq!(shown(&["\n", "Human:"], &["Hum", "an", ": hi\n"]), (String::new(), true));
}

#[test]
fn without_strings_nothing_is_held() {
    let mut stop = StopStrings::new(vec![String::new()]);
    assert_eq!(stop.push("abc"), ("abc".to_owned(), false));
    assert_eq!(stop.finish(), "");
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        text in "[abé]{0,24}",
        strings in prop::collection::vec("[abé]{1,4}", 0..3),
        cuts in prop::collection::vec(0usize..24, 0..6),
    ) {
        let chars: Vec<char> = text.chars().collect();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(chars.len())).collect();
        cuts.extend([0, chars.len()]);
        cuts.sort_unstable();
        let pieces: Vec<String> = cuts.windows(2).map(|cut| chars[cut[0]..cut[1]].iter().collect()).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
        let (got, came) = shown(&strings, &pieces);
        // Read as a whole: the string that is complete first ends it, wherever that is seen.
        let found = strings.iter().filter_map(|string| text.find(string)).min();
        prop_assert_eq!(came, found.is_some());
        if !came {
            prop_assert_eq!(&got, &text);
        } else {
            prop_assert!(text.starts_with(&got));
            let rest = &text[got.len()..];
            prop_assert!(strings.iter().any(|string| rest.starts_with(string)));
        }
    }
}
