//! `chat`: conversations through a pipe, commands, and Ctrl-C.

use crate::support::{keyfold, newest, refusal, succeed, text, workplace};
use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";

/// A model with room for a conversation and a template, to be read only.
fn model() -> &'static Path {
    static MODEL: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, model) = MODEL.get_or_init(|| {
        let folder = workplace();
        let long = ["--set", "model.max_position_embeddings=8192", "--set", "train.steps=12"];
        succeed(folder.path(), &[&["train", "tiny.toml", "--out", "run"][..], &long].concat());
        let model = folder.path().join("model");
        fs::rename(newest(&folder.path().join("run")), &model).unwrap();
        fs::write(model.join("chat_template.jinja"), TEMPLATE).unwrap();
        (folder, model)
    });
    model
}

fn begin(options: &[&str]) -> Child {
    let args = [&["chat", model().to_str().unwrap()][..], options].concat();
    keyfold(Path::new("."), &args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn talk(options: &[&str], lines: &str) -> Output {
    let mut child = begin(options);
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

const GREEDY: [&str; 4] = ["--temperature", "0", "--max-tokens", "20"];

/// What `generate` goes on with after `prompt`.
fn continued(prompt: &str) -> String {
    let args = [&["generate", model().to_str().unwrap(), "--prompt", prompt][..], &GREEDY].concat();
    let told = succeed(Path::new("."), &args);
    told[prompt.len()..].strip_suffix('\n').unwrap().to_owned()
}

#[test]
fn turns_with_a_kept_cache_say_what_the_whole_conversation_gives() {
    let output = talk(&GREEDY, "the cat\nthe mat\n/stats\n");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let first_prompt = "[user] the cat\n[assistant] ";
    let first = continued(first_prompt);
    // The model's answers are plain text, so that both ways write the same tokens.
    assert!(first.is_ascii(), "{first:?}");
    let second_prompt = format!("{first_prompt}{first}\n[user] the mat\n[assistant] ");
    let second = continued(&second_prompt);
    assert_eq!(text(&output.stdout), format!("{}\n{second}\n", first.trim_start()));

    let told = text(&output.stderr);
    // The cache has the first conversation but for the answer's last token.
    let kept = first_prompt.len() + first.len() - 1;
    let wanted = format!("after {} tokens of which {kept} were in the cache", second_prompt.len());
    assert!(told.contains(&wanted), "{told}: {wanted}");
    // Two layers, a key and a value of 16 numbers of 4 bytes.
    assert!(
        told.contains("cache: 256 B per token") && told.contains("in all: 2 answers, 40 tokens"),
        "{told}"
    );
}

#[test]
fn commands_are_not_said_to_the_model() {
    let lines = "/help\n/nothing\n\n/stats\nthe cat\n/reset\nthe cat\n/exit\nthe mat\n";
    let output = talk(&[&GREEDY[..], &["--system", "You sleep."]].concat(), lines);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (out, told) = (text(&output.stdout), text(&output.stderr));
    let answer = continued("[system] You sleep.\n[user] the cat\n[assistant] ");
    assert_eq!(out, format!("{0}\n{0}\n", answer.trim_start()));
    assert!(told.contains("/reset") && told.contains("unknown command /nothing"), "{told}");
    assert!(told.contains("in all: 0 answers"), "{told}");
    assert!(told.contains("(--max-tokens)"), "{told}");
}

#[test]
fn a_long_conversation_forgets_its_beginning() {
    let lines = "the cat sat on the mat\n".repeat(6) + "/stats\n";
    let output = talk(&[&GREEDY[..], &["--context", "200"]].concat(), &lines);
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("older exchanges no longer fit") && told.contains("in all: 6 answers"), "{told}");
    let error = refusal(&talk(&["--context", "20"], "this is far too long for it\n"));
    assert!(error.contains("expected at most 20 (see --context)"), "{error}");
}

#[test]
fn models_and_options_that_cannot_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("model");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let refused = |options: &[&str], told: &str| {
        let args = [&["chat", copy.to_str().unwrap()][..], options].concat();
        let error = refusal(&keyfold(folder.path(), &args).output().unwrap());
        assert!(error.contains(told), "{options:?}: {error}");
    };
    refused(&["--context", "9000"], "--context is 9000");
    refused(&["--max-tokens", "0"], "--max-tokens is 0");
    refused(&["--top-p", "2"], "top_p is 2");
    refused(&["--template", "none.jinja"], "none.jinja");
    fs::write(copy.join("generation_config.json"), r#"{"eos_token_id": "end"}"#).unwrap();
    refused(&[], "generation_config.json: `eos_token_id` is \"end\"");
    fs::write(copy.join("generation_config.json"), r#"{"temperature": [1]}"#).unwrap();
    refused(&[], "`temperature` is [1]");
    fs::write(copy.join("generation_config.json"), "{").unwrap();
    refused(&[], "generation_config.json: expected a JSON object");
    fs::remove_file(copy.join("generation_config.json")).unwrap();
    fs::write(copy.join("chat_template.jinja"), "{{ raise_exception('not like this') }}").unwrap();
    let mut child = keyfold(folder.path(), &["chat", copy.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let error = refusal(&child.wait_with_output().unwrap());
    assert!(error.contains("not like this") && error.contains("chat_template.jinja"), "{error}");
    fs::remove_file(copy.join("chat_template.jinja")).unwrap();
    refused(&[], "no chat template: expected chat_template.jinja");
}

#[test]
fn a_generation_config_sets_how_tokens_are_chosen_and_what_ends_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("model");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let config = copy.join("generation_config.json");
    let write = |options: &[&str]| {
        let args = ["generate", copy.to_str().unwrap(), "--prompt", "Day 3", "--max-tokens", "40"];
        succeed(folder.path(), &[&args[..], options].concat())
    };
    let greedy = write(&["--temperature", "0"]);
    assert_ne!(write(&[]), greedy);
    for keys in [r#"{"do_sample": false, "temperature": 1.5}"#, r#"{"temperature": 2.0, "top_k": 1}"#] {
        fs::write(&config, keys).unwrap();
        assert_eq!(write(&[]), greedy, "{keys}");
    }
    assert_ne!(write(&["--top-k", "50", "--temperature", "1"]), greedy);
    let varied = write(&["--temperature", "0", "--repetition-penalty", "1.5"]);
    assert_ne!(varied, greedy);
    fs::write(&config, r#"{"do_sample": false, "repetition_penalty": 1.5}"#).unwrap();
    assert_eq!(write(&[]), varied);
    assert_eq!(write(&["--repetition-penalty", "1"]), greedy);
    // The first byte that the text goes on with ends it.
    let next = greedy.as_bytes()["Day 3".len()];
    fs::write(&config, format!(r#"{{"eos_token_id": [3, {next}], "do_sample": false}}"#)).unwrap();
    assert_eq!(write(&[]), "Day 3\n");
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    // Likeliest tokens of a barely trained model go round in circles.
    let mut child = begin(&["--temperature", "0", "--max-tokens", "8000", "--context", "8192"]);
    let mut input = child.stdin.take().unwrap();
    let mut out = child.stdout.take().unwrap();
    input.write_all(b"the cat\n").unwrap();
    let mut byte = [0];
    out.read_exact(&mut byte).unwrap();
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    // It goes on with what comes next, and ends with the input.
    input.write_all(b"/stats\n/exit\n").unwrap();
    drop(input);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let start = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(60));
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("(stopped)") && told.contains("in all: 1 answers"), "{told}");
}
