use std::collections::HashSet;
use std::sync::Arc;

use super::template::last_mention;
use super::*;
use crate::Tokenizer;

fn some_stories(count: u64) -> impl Iterator<Item = Story> {
    let generators = [Vocabulary::Small, Vocabulary::Large].map(|v| StoryGenerator::new(7, v));
    (0..count).map(move |i| generators[i as usize % 2].story(i / 2))
}

#[test]
fn every_answer_was_said_before() {
    for story in some_stories(3000) {
        let kinds: HashSet<_> = story.answers.iter().map(|a| a.kind).collect();
        assert!(story.answers.len() >= 6 && kinds.len() >= 2, "few answers in: {}", story.text);
        let mut end = 0;
        for answer in &story.answers {
            assert!(answer.start >= end, "answers are in order and apart");
            end = answer.end;
            let word = &story.text[answer.start..answer.end];
            let before = last_mention(&story.text[..answer.start], word);
            assert_eq!(
                before.map(|at| answer.start - at),
                Some(answer.distance),
                "{word} in: {}",
                story.text
            );
        }
    }
}

#[test]
fn stories_read_like_text() {
    let mut longest = 0;
    let mut words = 0;
    for story in some_stories(3000) {
        let count = story.text.split_whitespace().count();
        assert!((120..=320).contains(&count), "{count} words: {}", story.text);
        longest = longest.max(count);
        words += count;
        assert!(!story.text.contains(['{', '}', '[', ']', '\n']), "{}", story.text);
        assert!(!story.text.contains("  ") && !story.text.contains(" ."), "{}", story.text);
        assert!(story.text.ends_with('.'));
        for sentence in story
            .text
            .split(['.', '?'])
            .map(str::trim_start)
            .filter(|s| s.len() > 1 && !s.starts_with("\" asked"))
        {
            let first = sentence.trim_start_matches(['"', ' ']).chars().next();
            assert!(first.is_some_and(char::is_uppercase), "{sentence} in: {}", story.text);
        }
        for (article, vowel) in [(" a ", false), (" an ", true), ("A ", false), ("An ", true)] {
            for (at, _) in story.text.match_indices(article) {
                let next = story.text[at + article.len()..].chars().next().unwrap();
                let starts_inside = article.len() == 2 && at > 0 && !story.text[..at].ends_with(' ');
                assert!(starts_inside || "aeiou".contains(next) == vowel, "{}", &story.text[at..]);
            }
        }
    }
    println!("mean {} words, longest {longest}", words / 3000);
}

#[test]
fn stories_are_fixed_and_never_repeat() {
    let all: HashSet<String> = some_stories(20_000).map(|s| s.text).collect();
    assert_eq!(all.len(), 20_000);
    let (a, b) = (StoryGenerator::new(7, Vocabulary::Small), StoryGenerator::new(8, Vocabulary::Small));
    assert_eq!(a.story(5), a.story(5));
    assert_eq!(a.story(5), a.story(5 + STORIES));
    assert_ne!(a.story(5), b.story(5));
    assert_ne!(a.story(5), a.story(FIRST_VALIDATION_STORY + 5));
    let _ = a.story(u64::MAX);
}

#[test]
fn the_digits_tell_all_stories_apart() {
    for vocabulary in [Vocabulary::Small, Vocabulary::Large] {
        let [n, r, a, o, l, _] = vocabulary.sizes().map(|n| n as u128);
        let choices: u128 = [n, r, a, o, l].iter().map(|n| n * (n - 1) * (n - 2)).product();
        assert!(choices >= u128::from(STORIES));
        let key = |digits| {
            let people = cast(digits, vocabulary, &mut SplitMix::new(1));
            people[..3].iter().map(|p| (p.name, p.role, p.adjective, p.object, p.land)).collect::<Vec<_>>()
        };
        let all: HashSet<_> = (0..50_000).chain(STORIES - 50_000..STORIES).map(key).collect();
        assert_eq!(all.len(), 100_000);
        let [n, r, a, o, l, p] = vocabulary.sizes();
        assert!(n <= 2 * words::SHE.len().min(words::HE.len()) && r <= words::ROLES.len());
        assert!(a <= words::ADJECTIVES.len() && o <= words::OBJECTS.len());
        assert!(l <= words::LANDS.len() && p <= words::PLACES.len());
    }
}

#[test]
fn no_word_is_a_good_guess() {
    for vocabulary in [Vocabulary::Small, Vocabulary::Large] {
        let generator = StoryGenerator::new(7, vocabulary);
        let mut counts = std::collections::HashMap::<(AnswerKind, String), usize>::new();
        let mut totals = std::collections::HashMap::<AnswerKind, usize>::new();
        for story in (0..3000).map(|i| generator.story(i)) {
            for answer in &story.answers {
                let word = story.text[answer.start..answer.end].to_string();
                *counts.entry((answer.kind, word)).or_default() += 1;
                *totals.entry(answer.kind).or_default() += 1;
            }
        }
        let fewest = vocabulary.sizes().into_iter().min().unwrap() as f64;
        for ((kind, word), count) in counts {
            let share = count as f64 / totals[&kind] as f64;
            assert!(share < 1.2 / fewest, "{word} is {share:.3} of all answers of its kind");
        }
    }
}

/// The default tokenizer makes one token of each, so that a copy is one token and not a spelling.
#[test]
fn every_word_of_the_small_vocabulary_is_one_token() {
    let generator = StoryGenerator::new(0, Vocabulary::Small);
    let texts: Vec<String> = (0..2000).map(|i| generator.story(i).text).collect();
    let tokenizer = Tokenizer::train(1024, texts.iter().map(String::as_str)).unwrap();
    let mut seen = HashSet::new();
    for story in (0..500).map(|i| generator.story(FIRST_VALIDATION_STORY + i)) {
        for answer in &story.answers {
            let word = &story.text[answer.start..answer.end];
            assert!(story.text[..answer.start].ends_with(' '), "{word} in: {}", story.text);
            if seen.insert(word.to_owned()) {
                let tokens = tokenizer.encode(&format!(" {word}")).unwrap();
                assert_eq!(tokens.len(), 1, "{word}");
            }
        }
    }
    assert_eq!(seen.len(), Vocabulary::Small.sizes().iter().sum::<usize>());
}

/// Told apart by more than the last letters.
#[test]
fn words_of_the_small_vocabulary_share_no_beginnings() {
    let [names, roles, adjectives, objects, lands, places] = Vocabulary::Small.sizes();
    let mut all: Vec<&str> = Vec::new();
    let lists: [(&[&str], usize); 7] = [
        (&words::SHE, names / 2),
        (&words::HE, names / 2),
        (&words::ROLES, roles),
        (&words::ADJECTIVES, adjectives),
        (&words::OBJECTS, objects),
        (&words::LANDS, lands),
        (&words::PLACES, places),
    ];
    lists.iter().for_each(|(list, count)| all.extend(&list[..*count]));
    for (i, word) in all.iter().enumerate() {
        let alike = all[..i].iter().find(|w| w[..3.min(w.len())] == word[..3.min(word.len())]);
        assert!(alike.is_none(), "{word} and {alike:?}");
    }
}

#[test]
fn some_answers_are_near_and_some_far() {
    let mut distances: Vec<usize> = (0..500)
        .flat_map(|i| StoryGenerator::new(3, Vocabulary::Small).story(i).answers)
        .map(|a| a.distance)
        .collect();
    distances.sort_unstable();
    let share =
        |from: usize| distances.iter().filter(|d| **d >= from).count() as f64 / distances.len() as f64;
    assert!(
        share(100) > 0.6 && share(400) > 0.03 && distances[distances.len() - 1] > 600,
        "{} {}",
        share(100),
        share(400)
    );
}

#[test]
fn words_are_distinct() {
    let lists: [&[&str]; 8] = [
        &words::SHE,
        &words::HE,
        &words::ROLES,
        &words::ADJECTIVES,
        &words::OBJECTS,
        &words::LANDS,
        &words::PLACES,
        &words::TOWN_STARTS,
    ];
    let all: Vec<&str> = lists.iter().flat_map(|l| l.iter().copied()).collect();
    let set: HashSet<&str> = all.iter().copied().collect();
    assert_eq!(all.len(), set.len());
}

#[test]
fn templates_only_name_known_fields() {
    let all = plots::PLOTS.iter().flat_map(|p| [p.openings, p.facts, p.turns, p.recalls, p.endings]);
    let lists = [plots::ASIDES, plots::INTRODUCTIONS, plots::INTRODUCTIONS_AT_HOME, plots::WEATHER];
    for template in all.chain(lists).flatten() {
        for part in template.split(['{', '[']).skip(1) {
            let field =
                part.split(['}', ']']).next().unwrap().trim_start_matches("an ").trim_start_matches("An ");
            let (letter, attribute) = field.split_once('.').unwrap_or((field, "name"));
            assert!(["a", "b", "c"].contains(&letter), "{template}");
            let known = ["name", "role", "adj", "obj", "land", "place"];
            assert!(known.contains(&attribute), "{template}");
        }
    }
}

#[test]
fn rows_mark_exactly_the_answers() {
    let text: String = some_stories(300).map(|s| s.text + "\n").collect();
    let bpe = Tokenizer::train(1024, text.lines()).unwrap();
    for tokenizer in [Tokenizer::bytes(), bpe] {
        let tokenizer = Arc::new(tokenizer);
        let rows = StoryRows::new(tokenizer.clone(), 700, true, 3, Vocabulary::Large, false).unwrap();
        for position in 0..20 {
            let row = rows.row(position).unwrap();
            assert_eq!((row.tokens.len(), row.recall.len(), row.doc_starts.len()), (701, 701, 700));
            let first = StoryGenerator::new(3, Vocabulary::Large).story(position * rows.stride);
            for n in 1..=row.answers.len() as u32 {
                let ids: Vec<u32> = (0..701).filter(|&i| row.recall[i] == n).map(|i| row.tokens[i]).collect();
                let word = tokenizer.decode(&ids);
                if let Some(answer) = first.answers.get(n as usize - 1) {
                    assert_eq!(word.trim_start(), &first.text[answer.start..answer.end]);
                }
                assert!(!word.trim().is_empty() && !word.trim().contains([' ', '.', ',']), "{word}");
            }
            let starts: HashSet<u32> = row.doc_starts.iter().copied().collect();
            for &start in starts.iter().filter(|&&s| s > 0) {
                assert_eq!(row.tokens[start as usize - 1], tokenizer.eos());
            }
        }
    }
}

#[test]
fn training_and_validation_rows_differ() {
    let tokenizer = Arc::new(Tokenizer::bytes());
    let train = StoryRows::new(tokenizer.clone(), 256, false, 3, Vocabulary::Large, false).unwrap();
    let validation = StoryRows::new(tokenizer.clone(), 256, false, 3, Vocabulary::Large, true).unwrap();
    assert_ne!(train.row(0).unwrap().tokens, validation.row(0).unwrap().tokens);
    assert!(train.row(0).unwrap().doc_starts.iter().all(|&s| s == 0));
    assert!(train.count() * train.stride <= FIRST_VALIDATION_STORY);
    assert!(StoryRows::new(tokenizer, 0, false, 3, Vocabulary::Large, true).is_err());
}
