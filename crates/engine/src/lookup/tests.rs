use super::*;

const LOOKUP: Lookup = Lookup { tokens: 3, longest: 3, shortest: 2 };

#[test]
fn what_followed_is_guessed() {
    assert_eq!(LOOKUP.guess(&[1, 2, 3, 4, 5, 9, 1, 2], 9), [3, 4, 5]);
    assert_eq!(LOOKUP.guess(&[1, 2, 3, 4, 5, 9, 1, 2], 2), [3, 4]);
    assert_eq!(LOOKUP.guess(&[1, 2, 7, 1, 2, 8, 1, 2], 1), [8], "the latest place counts");
    assert_eq!(LOOKUP.guess(&[5, 1, 2, 7, 9, 1, 2, 8, 5, 1, 2], 1), [7], "a longer end counts more");
    assert_eq!(LOOKUP.guess(&[4, 4, 4, 4], 9), [4], "a place may overlap the end");
}

#[test]
fn nothing_is_guessed_from_nothing() {
    assert!(LOOKUP.guess(&[], 9).is_empty());
    assert!(LOOKUP.guess(&[1], 9).is_empty());
    assert!(LOOKUP.guess(&[1, 1], 9).is_empty(), "one token is too short an end");
    assert!(LOOKUP.guess(&[1, 2, 3, 4], 9).is_empty());
    assert!(LOOKUP.guess(&[1, 2, 1, 2], 0).is_empty());
}
