use super::*;
use proptest::prelude::*;

fn key(content: u32) -> PageKey {
    PageKey::new(None, &[content])
}

#[test]
fn keys_chain() {
    let first = PageKey::new(None, &[1, 2]);
    assert_eq!(first, PageKey::new(None, &[1, 2]));
    assert_ne!(first, PageKey::new(None, &[2, 1]));
    assert_ne!(PageKey::new(Some(&first), &[3]), PageKey::new(None, &[3]));
    assert_ne!(PageKey::new(Some(&first), &[3]), PageKey::new(Some(&PageKey::new(None, &[2, 1])), &[3]));
}

#[test]
fn memory_becomes_pages() {
    assert_eq!(fitting(3 * 32 * 4 * 16 * 5 + 1, 3 * 32 * 4, 16), 5);
    assert_eq!(fitting(10, 384, 16), 0);
}

#[test]
fn the_longest_unused_goes_first() {
    let mut pool = PagePool::new(3);
    let pages: Vec<u32> = (0..3).map(|_| pool.take().expect("a page")).collect();
    assert_eq!(pool.take(), None);
    for (page, content) in pages.iter().zip(1..) {
        pool.publish(*page, key(content));
    }
    // Given back from the end: what begins the text lasts.
    for page in pages.iter().rev() {
        pool.give_back(*page);
    }
    assert_eq!((pool.available(), pool.idle()), (3, 3));
    assert_eq!(pool.take(), Some(pages[2]));
    assert_eq!(pool.find(&key(3)), None);
    assert_eq!(pool.find(&key(1)), Some(pages[0]));
    pool.share(pages[0]);
    pool.give_back(pages[0]);
    assert_eq!(pool.take(), Some(pages[1]), "used again since");
    pool.audit().expect("books");
}

#[test]
fn shared_pages_stay_until_the_last_user_goes() {
    let mut pool = PagePool::new(2);
    let page = pool.take().expect("a page");
    pool.publish(page, key(7));
    pool.share(page);
    pool.give_back(page);
    assert_eq!(pool.available(), 1);
    pool.give_back(page);
    assert_eq!((pool.available(), pool.idle()), (2, 1));
    pool.forget();
    assert_eq!((pool.available(), pool.idle(), pool.find(&key(7))), (2, 0, None));
}

#[test]
fn the_same_content_is_known_once() {
    let mut pool = PagePool::new(2);
    let (a, b) = (pool.take().expect("a page"), pool.take().expect("a page"));
    pool.publish(a, key(1));
    pool.publish(b, key(1));
    assert_eq!(pool.find(&key(1)), Some(a));
    pool.give_back(b);
    assert_eq!(pool.idle(), 0, "the double is blank");
    pool.give_back(a);
    assert_eq!(pool.idle(), 1);
    pool.audit().expect("books");
}

#[test]
#[should_panic(expected = "given back twice")]
fn giving_back_twice_is_a_bug() {
    let mut pool = PagePool::new(1);
    let page = pool.take().expect("a page");
    pool.give_back(page);
    pool.give_back(page);
}

proptest! {
    #[test]
    fn books_are_right_whatever_happens(
        size in 1usize..8,
        deeds in prop::collection::vec((0u8..5, any::<prop::sample::Index>(), 0u32..6), 0..200),
    ) {
        let mut pool = PagePool::new(size);
        let mut held: Vec<u32> = Vec::new();
        for (deed, which, content) in deeds {
            match deed {
                0 => {
                    let free = pool.available();
                    let taken = pool.take();
                    prop_assert_eq!(taken.is_some(), free > 0);
                    if let Some(page) = taken {
                        prop_assert!(!held.contains(&page));
                        held.push(page);
                    }
                }
                1 if !held.is_empty() => pool.give_back(held.swap_remove(which.index(held.len()))),
                2 if !held.is_empty() => pool.publish(held[which.index(held.len())], key(content)),
                3 => {
                    if let Some(page) = pool.find(&key(content)) {
                        pool.share(page);
                        held.push(page);
                    }
                }
                4 => pool.forget(),
                _ => {}
            }
            prop_assert_eq!(pool.audit(), Ok(()));
        }
        for page in held {
            pool.give_back(page);
        }
        prop_assert_eq!(pool.available(), size);
    }
}
