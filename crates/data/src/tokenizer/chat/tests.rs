use super::*;

use serde_json::{Value as Json, json};

fn fixture(name: &str) -> Vec<Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/chat").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn check(template: &ChatTemplate, cases: &Json, name: &str) {
    for (index, case) in cases.as_array().unwrap().iter().enumerate() {
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let got = template.render(&messages, case["add_generation_prompt"].as_bool().unwrap());
        match (got, case["rendered"].as_str()) {
            (Ok(got), Some(want)) => assert_eq!(got, want, "{name}, case {index}"),
            (Err(error), None) => {
                let (error, want) = (error.to_string(), case["error"].as_str().unwrap());
                assert!(error.contains(want), "{name}, case {index}: {error}: {want}");
            }
            (got, want) => panic!("{name}, case {index}: {got:?} for {want:?}"),
        }
    }
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let rows = fixture("expected.json");
    assert!(rows.len() >= 5);
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let tokens = serde_json::from_value(row["tokens"].clone()).unwrap();
        check(
            &ChatTemplate::new(row["template"].as_str().unwrap(), tokens, name).unwrap(),
            &row["cases"],
            name,
        );
    }
}

#[test]
fn templates_of_real_models_too() {
    let Some(models) = std::env::var_os("KEYFOLD_REAL_MODELS") else {
        eprintln!("skipped: KEYFOLD_REAL_MODELS names no folder of real models");
        return;
    };
    for row in fixture("real.json") {
        let name = row["folder"].as_str().unwrap();
        let folder = Path::new(&models).join(name);
        if folder.is_dir() {
            check(&ChatTemplate::load(&folder).unwrap(), &row["cases"], name);
        } else {
            eprintln!("skipped: no {}", folder.display());
        }
    }
}

/// Writes files of a model folder and loads its template.
fn load(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<ChatTemplate>) {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let template = ChatTemplate::load(folder.path());
    (folder, template)
}

#[test]
fn a_folder_says_its_template_in_several_ways() {
    let say =
        |files: &[(&str, &str)]| load(files).1.unwrap().render(&[Message::new("user", "hi")], false).unwrap();
    let named = json!({"bos_token": {"content": "<s>"}, "chat_template": [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"},
    ]})
    .to_string();
    assert_eq!(say(&[("tokenizer_config.json", &named)]), "<s>hi");
    let one = json!({"chat_template": [{"name": "rag", "template": "rag"}]}).to_string();
    assert_eq!(say(&[("tokenizer_config.json", &one)]), "rag");
    assert_eq!(say(&[("tokenizer_config.json", r#"{"chat_template": "plain"}"#)]), "plain");
    assert_eq!(say(&[("tokenizer_config.json", &named), ("chat_template.jinja", "file")]), "file");
}

#[test]
fn folders_without_a_usable_template_are_refused_by_file_and_key() {
    let refused = |files: &[(&str, &str)], told: &[&str]| {
        let error = load(files).1.unwrap_err().to_string();
        for told in told {
            assert!(error.contains(told), "{error}: {told}");
        }
    };
    refused(&[], &["no chat template", "chat_template.jinja", "tokenizer_config.json"]);
    refused(&[("tokenizer_config.json", "{}")], &["no chat template"]);
    refused(&[("tokenizer_config.json", "{")], &["tokenizer_config.json", "expected a JSON object"]);
    refused(&[("tokenizer_config.json", "[1]")], &["expected a JSON object, found [1]"]);
    refused(&[("tokenizer_config.json", r#"{"chat_template": 5}"#)], &["`chat_template` is 5", "a string"]);
    let several = json!({"chat_template": [{"name": "a", "template": ""}, {"name": "b", "template": ""}]});
    refused(&[("tokenizer_config.json", &several.to_string())], &["`chat_template`", "default"]);
    let wrong = r#"{"chat_template": "x", "bos_token": 1}"#;
    refused(&[("tokenizer_config.json", wrong)], &["`bos_token` is 1", "a string"]);
    refused(&[("chat_template.jinja", "a\n{% if %}")], &["chat_template.jinja", "line 2"]);
}

#[test]
fn broken_templates_end_with_an_error() {
    let render = |source: &str| {
        ChatTemplate::new(source, BTreeMap::new(), "here")
            .and_then(|template| template.render(&[Message::new("user", "hi")], true))
    };
    for source in [
        "{{ messages.first.second.third }}",
        "{{ nothing() }}",
        "{{ messages | nothing }}",
        "{{ messages[0].content.nothing() }}",
        "{{ 1 / 0 }}",
        "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{{ a }}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ] {
        let error = render(source).unwrap_err().to_string();
        assert!(error.starts_with("here: chat template: "), "{source}: {error}");
    }
    assert_eq!(render("{{ nothing }}|{{ messages[7] }}").unwrap(), "|");
}

#[test]
fn generation_marks_go_and_nothing_else() {
    let marks = find::without_generation_marks;
    assert_eq!(marks("a{%- generation -%}b{% endgeneration +%}"), "a{%- if true -%}b{% endif +%}");
    for text in ["", "{% if generation %}", "{% generation", "{{ generation }}", "a {% %} b", "{%%}"] {
        assert_eq!(marks(text), text);
    }
}

#[test]
fn times_are_written_as_python_writes_them() {
    let at = |seconds: u64| {
        time::strftime("%d %b %Y|%A %a %B %-d %j %H:%M:%S %I %p %y %F %T %%", seconds).unwrap()
    };
    // Expected strings: Python, datetime.fromtimestamp(s, UTC).strftime.
    assert_eq!(
        at(1_722_000_000),
        "26 Jul 2024|Friday Fri July 26 208 13:20:00 01 PM 24 2024-07-26 13:20:00 %"
    );
    assert_eq!(
        at(951_782_400),
        "29 Feb 2000|Tuesday Tue February 29 060 00:00:00 12 AM 00 2000-02-29 00:00:00 %"
    );
    assert_eq!(at(0), "01 Jan 1970|Thursday Thu January 1 001 00:00:00 12 AM 70 1970-01-01 00:00:00 %");
    assert_eq!(
        at(4_102_444_799),
        "31 Dec 2099|Thursday Thu December 31 365 23:59:59 11 PM 99 2099-12-31 23:59:59 %"
    );
    assert!(time::strftime("%Q", 0).unwrap_err().to_string().contains("`Q`"));
    let now = ChatTemplate::new("{{ strftime_now('%Y') }}", BTreeMap::new(), "here").unwrap();
    assert!(now.render(&[], false).unwrap().parse::<u32>().unwrap() >= 2024);
}
