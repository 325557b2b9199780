//! CLIP's tokenizer against transformers on texts that are hard to cut, and against files that are wrong.

use std::path::{Path, PathBuf};

use naevus::models::Tokenizer;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers").join(name)
}

/// Texts and token numbers, made by tools/golden/tokenizer.py.
fn prompts(name: &str) -> Vec<(String, Vec<u32>)> {
    let text = std::fs::read_to_string(folder(name).join("prompts.json")).unwrap();
    let rows: serde_json::Value = serde_json::from_str(&text).unwrap();
    let row = |row: &serde_json::Value| {
        let ids = row[1].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        (row[0].as_str().unwrap().to_string(), ids)
    };
    rows.as_array().unwrap().iter().map(row).collect()
}

/// A copy of a golden folder in which `file` is `text`; None takes it away.
fn changed(name: &str, file: &str, text: Option<&str>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap().flatten() {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join(file);
    match text {
        Some(text) => std::fs::write(&path, text).unwrap(),
        None => std::fs::remove_file(&path).unwrap(),
    }
    dir
}

#[test]
fn texts_become_transformers_numbers() {
    for name in ["clip", "openclip", "added", "saved"] {
        let tokenizer = Tokenizer::read(&folder(name)).unwrap();
        let length = tokenizer.model_max_length.unwrap();
        let rows = prompts(name);
        assert!(rows.len() > 20 && length == rows[0].1.len(), "{name}");
        for (text, expected) in rows {
            assert_eq!(tokenizer.encode(&text, length).unwrap(), expected, "{name}: {text:?}");
        }
    }
}

#[test]
fn a_token_of_several_vectors_stands_for_all() {
    let mut tokenizer = Tokenizer::read(&folder("clip")).unwrap();
    let count = tokenizer.tokens();
    let numbers: Vec<usize> = ["<mole>", "<mole>_1", "<mole>_2", "<one>"].iter().map(|token| tokenizer.add(token).unwrap()).collect();
    assert_eq!(numbers, [count, count + 1, count + 2, count + 3]);
    let ids = tokenizer.encode("<mole><one>", 8).unwrap();
    assert_eq!(ids[1..5], [count as u32, count as u32 + 1, count as u32 + 2, count as u32 + 3]);
    assert!(tokenizer.add("<one>").unwrap_err().to_string().contains("token \"<one>\" is in the vocabulary already"));
}

#[test]
fn texts_are_bounded() {
    let tokenizer = Tokenizer::read(&folder("clip")).unwrap();
    assert!(tokenizer.encode(&"x".repeat(70_000), 40).unwrap_err().to_string().contains("70000 bytes, expected at most"));
    assert!(tokenizer.encode("x", 1).is_err());
    assert_eq!(tokenizer.encode("a photo", 2).unwrap().len(), 2);
}

#[test]
fn wrong_files_are_named_in_one_line() {
    let merges = std::fs::read_to_string(folder("clip").join("merges.txt")).unwrap();
    let rows: Vec<(&str, Option<String>, &str)> = vec![
        ("vocab.json", None, "No such file"),
        ("merges.txt", None, "No such file"),
        ("vocab.json", Some("[]".to_string()), "expected a JSON object"),
        ("vocab.json", Some("{}".to_string()), "which is not in the vocabulary"),
        ("vocab.json", Some(r#"{"a": 0, "b": 0}"#.to_string()), "number 0 of a token"),
        ("vocab.json", Some(r#"{"a": 0, "b": 9}"#.to_string()), "number 9 of a token"),
        ("vocab.json", Some(r#"{"a": 0, "b": -1}"#.to_string()), "-1, expected an integer"),
        ("vocab.json", Some(r#"{"a": 0, "a": 1}"#.to_string()), "twice"),
        ("vocab.json", Some(format!(r#"{{"{}": 0}}"#, "a".repeat(2000))), "2000 bytes"),
        ("merges.txt", Some(format!("{merges}qqqqqq zzzzzz\n")), "needs the token \"qqqqqq\""),
        ("merges.txt", Some("a b c\n".to_string()), "merges.txt:1: \"a b c\", expected two tokens"),
        ("merges.txt", Some("ab\n".to_string()), "expected two tokens"),
        ("tokenizer_config.json", Some(r#"{"tokenizer_class": "T5Tokenizer"}"#.to_string()), "tokenizer_class: \"T5Tokenizer\", expected CLIPTokenizer"),
        ("tokenizer_config.json", Some(r#"{"padding_side": "left"}"#.to_string()), "padding_side: \"left\""),
        ("tokenizer_config.json", Some(r#"{"do_lower_case": false}"#.to_string()), "do_lower_case"),
        ("tokenizer_config.json", Some(r#"{"model_max_length": 0}"#.to_string()), "model_max_length: 0"),
        ("tokenizer_config.json", Some(r#"{"sentencepiece": 1}"#.to_string()), "unknown or unsupported field `sentencepiece`"),
        ("tokenizer_config.json", Some(r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#.to_string()), "added_tokens_decoder: expected numbers"),
        ("tokenizer_config.json", Some(r#"{"added_tokens_decoder": {"7": {"content": "<new>"}}}"#.to_string()), "but the files say 7"),
        ("special_tokens_map.json", Some(r#"{"pad_token": 3}"#.to_string()), "pad_token: expected a token"),
        ("special_tokens_map.json", Some(r#"{"pad_token": ""}"#.to_string()), "token \"\" of 0 bytes"),
        ("added_tokens.json", Some(r#"{"<a>": 99999999}"#.to_string()), "99999999, expected an integer"),
        ("tokenizer.json", Some("{}".to_string()), "model: absent"),
        ("tokenizer.json", Some(r#"{"model": {"type": "Unigram"}}"#.to_string()), "type: \"Unigram\""),
        ("tokenizer.json", Some("{\"model\": ".repeat(5000)), "expected a JSON object"),
    ];
    for (file, text, want) in rows {
        let dir = changed("clip", file, text.as_deref());
        let error = Tokenizer::read(dir.path()).err().unwrap_or_else(|| panic!("{file}: {text:?} was read")).to_string();
        assert!(error.contains(want) && !error.contains('\n') && error.len() < 1000, "{file}: {error}, expected {want}");
    }
}
