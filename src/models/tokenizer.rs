//! CLIP's byte-pair tokenizer, as the `tokenizer` folders of diffusers' pipelines hold it: `vocab.json` and `merges.txt`, or
//! `tokenizer.json`, with `tokenizer_config.json` and `special_tokens_map.json`. Equal to transformers' `CLIPTokenizer`.
//! Source: Radford et al. (2021); `transformers/models/clip/tokenization_clip.py`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::base::{Error, Kind, Result};
use crate::weights::Config;

/// What a text is cut into before pairs are merged.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
const END_OF_WORD: &str = "</w>";
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// What a hostile file may claim: tokens, merges, bytes of a token, bytes of merges.txt, tokens of a text.
const MOST_TOKENS: usize = 1 << 20;
const LONGEST_TOKEN: usize = 1024;
const MOST_BYTES: u64 = 64 << 20;
const MOST_LENGTH: usize = 4096;
/// Bytes of a text.
const LONGEST_TEXT: usize = 1 << 16;

/// Fields of `tokenizer_config.json` that change no number.
const OTHERS: &[&str] = &[
    "add_prefix_space",
    "additional_special_tokens",
    "auto_map",
    "backend",
    "clean_up_tokenization_spaces",
    "errors",
    "extra_special_tokens",
    "is_local",
    "local_files_only",
    "max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "processor_class",
    "special_tokens_map_file",
    "stride",
    "tokenizer_file",
    "truncation_strategy",
    "use_fast",
    "trust_remote_code",
    "full_tokenizer_file",
    "truncation",
    "padding",
];

/// Tokens that have a role, by the names of their fields.
const ROLES: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// Text to token numbers.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    place: String,
    start: u32,
    end: u32,
    pad: u32,
    /// Tokens of a text with start and end; None: the files do not say.
    pub model_max_length: Option<usize>,
    /// Tokens beside the vocabulary's own, or with a role.
    added: BTreeSet<String>,
}

impl Tokenizer {
    /// Whether a folder holds one.
    pub fn is_in(folder: &Path) -> bool {
        ["vocab.json", "tokenizer.json"].iter().any(|name| folder.join(name).is_file())
    }

    /// Reads a folder. Fails with the file and what is wrong with it.
    pub fn read(folder: &Path) -> Result<Tokenizer> {
        let place = folder.display().to_string();
        let files = Files::read(folder)?;
        let wrong = |fact: String| Error::new(Kind::Config, place.clone(), fact);
        let known: HashMap<String, u32> = files.vocabulary.iter().map(|(token, id)| (token.clone(), *id)).collect();
        check_merges(&files.merges, &known).map_err(wrong)?;
        let settings = Settings::read(folder, &files)?;
        let bpe = BPE::builder()
            .vocab_and_merges(known.into_iter().collect::<HashMap<_, _, _>>(), files.merges)
            .end_of_word_suffix(END_OF_WORD.to_string())
            .unk_token(settings.roles[2].content.clone())
            .build()
            .map_err(|e| wrong(first_line(e)))?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        let fixed = |e: tokenizers::Error| wrong(first_line(e));
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_string()), " ").map_err(fixed)?;
        inner.with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()]))).map_err(fixed)?;
        let split = Split::new(SplitPattern::Regex(WORDS.to_string()), SplitDelimiterBehavior::Removed, true).map_err(fixed)?;
        let steps: Vec<PreTokenizerWrapper> = vec![split.into(), ByteLevel::new(false, true, true).into()];
        inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
        let mut tokenizer =
            Tokenizer { inner, place: place.clone(), start: 0, end: 0, pad: 0, model_max_length: settings.model_max_length, added: BTreeSet::new() };
        for (id, token) in settings.added {
            let content = token.content.clone();
            let found = tokenizer.give(token)?;
            if found != id {
                return Err(wrong(format!("token {} is number {found}, but the files say {id}", show(&content))));
            }
        }
        let mut numbers = Vec::new();
        for token in settings.roles {
            numbers.push(tokenizer.give(token)?);
        }
        (tokenizer.start, tokenizer.end, tokenizer.pad) = (numbers[0], numbers[1], numbers[3]);
        Ok(tokenizer)
    }

    /// Lets a token be found in texts; its number is the vocabulary's, or the next.
    fn give(&mut self, token: AddedToken) -> Result<u32> {
        let content = token.content.clone();
        if content.is_empty() || content.len() > LONGEST_TOKEN {
            let fact = format!("token {} of {} bytes, expected 1 to {LONGEST_TOKEN}", show(&content), content.len());
            return Err(Error::new(Kind::Config, self.place.clone(), fact));
        }
        self.inner.add_tokens([token]).map_err(|e| Error::new(Kind::Config, self.place.clone(), first_line(e)))?;
        self.added.insert(content.clone());
        self.inner.token_to_id(&content).ok_or_else(|| Error::new(Kind::Config, self.place.clone(), format!("token {} was not taken", show(&content))))
    }

    /// Adds a token that the vocabulary does not hold, and gives its number.
    pub fn add(&mut self, token: &str) -> Result<usize> {
        if self.inner.token_to_id(token).is_some() {
            let fact = format!("token {} is in the vocabulary already, expected a new one", show(token));
            return Err(Error::new(Kind::Config, self.place.clone(), fact));
        }
        Ok(self.give(AddedToken::from(token, false))? as usize)
    }

    /// Tokens of all sorts.
    pub fn tokens(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// What fills up short texts.
    pub fn padding(&self) -> String {
        self.inner.id_to_token(self.pad).unwrap_or_default()
    }

    /// `length` numbers: start, the text's as far as there is room, end, padding. A token that was added with several
    /// vectors, `<tok>`, `<tok>_1` and so on, stands for all of them.
    pub fn encode(&self, text: &str, length: usize) -> Result<Vec<u32>> {
        if length < 2 {
            return Err(Error::new(Kind::Data, "prompt", format!("room for {length} tokens, expected 2 or more")));
        }
        let kept = self.numbers(text)?.into_iter().take(length - 2);
        let mut ids: Vec<u32> = std::iter::once(self.start).chain(kept).chain([self.end]).collect();
        ids.resize(length, self.pad);
        Ok(ids)
    }

    /// Tokens of a text, with start and end.
    pub fn count(&self, text: &str) -> Result<usize> {
        Ok(self.numbers(text)?.len() + 2)
    }

    fn numbers(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() > LONGEST_TEXT {
            return Err(Error::new(Kind::Data, "prompt", format!("{} bytes, expected at most {LONGEST_TEXT}", text.len())));
        }
        Ok(self.pieces(&self.expanded(text)?)?.get_ids().to_vec())
    }

    fn pieces(&self, text: &str) -> Result<tokenizers::Encoding> {
        self.inner.encode(text, false).map_err(|e| Error::new(Kind::Data, "prompt", first_line(e)))
    }

    /// diffusers' `maybe_convert_prompt`.
    fn expanded(&self, text: &str) -> Result<String> {
        let mut text = text.to_string();
        let mut seen = BTreeSet::new();
        for token in self.pieces(&text)?.get_tokens() {
            if !self.added.contains(token) || !seen.insert(token.clone()) {
                continue;
            }
            let vectors: Vec<String> = (1..).map(|i| format!("{token}_{i}")).take_while(|name| self.added.contains(name)).collect();
            if !vectors.is_empty() {
                text = text.replace(token.as_str(), &format!("{token} {}", vectors.join(" ")));
            }
        }
        Ok(text)
    }
}

/// The vocabulary and the pairs in order of their merging.
struct Files {
    vocabulary: Vec<(String, u32)>,
    merges: Vec<(String, String)>,
    /// `added_tokens` of tokenizer.json.
    added: Vec<Value>,
}

impl Files {
    fn read(folder: &Path) -> Result<Files> {
        let all = folder.join("tokenizer.json");
        if all.is_file() {
            let config = Config::read(&all)?;
            let model = config.object("model")?.ok_or_else(|| config.error("model", "absent, expected a BPE model"))?;
            model.require_or_absent("type", "BPE")?;
            model.require("end_of_word_suffix", END_OF_WORD)?;
            let vocabulary = model.object("vocab")?.ok_or_else(|| model.error("vocab", "absent, expected tokens and their numbers"))?;
            let merges = model.value("merges").and_then(Value::as_array).filter(|m| m.len() <= MOST_TOKENS);
            let merges = merges.ok_or_else(|| model.error("merges", format!("expected a list of at most {MOST_TOKENS} pairs")))?;
            let pair = |value: &Value| match value {
                Value::String(text) => pair(text),
                Value::Array(items) => match items.as_slice() {
                    [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
                    _ => None,
                },
                _ => None,
            };
            let merges: Option<Vec<_>> = merges.iter().map(pair).collect();
            return Ok(Files {
                vocabulary: vocabulary_of(&vocabulary)?,
                merges: merges.ok_or_else(|| model.error("merges", "a merge is no pair of tokens"))?,
                added: config.value("added_tokens").and_then(Value::as_array).cloned().unwrap_or_default(),
            });
        }
        let vocabulary = vocabulary_of(&Config::read(&folder.join("vocab.json"))?)?;
        Ok(Files { vocabulary, merges: read_merges(&folder.join("merges.txt"))?, added: Vec::new() })
    }
}

/// Every number from 0 on, once.
fn vocabulary_of(config: &Config) -> Result<Vec<(String, u32)>> {
    let tokens = config.all_integers(0..=MOST_TOKENS)?;
    let mut taken = vec![false; tokens.len().min(MOST_TOKENS)];
    for &(token, id) in &tokens {
        let free = taken.get_mut(id).is_some_and(|taken| !std::mem::replace(taken, true));
        if !free || token.len() > LONGEST_TOKEN {
            let fact = format!(
                "number {id} of a token of {} bytes, expected the numbers below {} once each and tokens of at most {LONGEST_TOKEN} bytes",
                token.len(),
                taken.len()
            );
            return Err(config.error(&show(token), fact));
        }
    }
    Ok(tokens.into_iter().map(|(token, id)| (token.to_string(), id as u32)).collect())
}

fn read_merges(path: &Path) -> Result<Vec<(String, String)>> {
    let place = path.display().to_string();
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, &e))?.len();
    if bytes > MOST_BYTES {
        return Err(Error::new(Kind::Config, place, format!("{bytes} bytes, expected at most {MOST_BYTES}")));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    let text = String::from_utf8(text).map_err(|_| Error::new(Kind::Config, place.clone(), "not UTF-8 text, expected pairs of tokens"))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    let merge = |(at, line): (usize, &str)| {
        pair(line).ok_or_else(|| Error::new(Kind::Config, format!("{place}:{}", at + 1), format!("{}, expected two tokens", show(line))))
    };
    lines.map(merge).collect()
}

fn pair(line: &str) -> Option<(String, String)> {
    let (a, b) = line.split_once(' ')?;
    (!a.is_empty() && !b.is_empty() && !b.contains(' ')).then(|| (a.to_string(), b.to_string()))
}

/// Both tokens of a merge and what they make are tokens.
fn check_merges(merges: &[(String, String)], known: &HashMap<String, u32>) -> std::result::Result<(), String> {
    if merges.len() > MOST_TOKENS {
        return Err(format!("{} merges, expected at most {MOST_TOKENS}", merges.len()));
    }
    for (a, b) in merges {
        if let Some(token) = [a, b, &format!("{a}{b}")].into_iter().find(|token| !known.contains_key(*token)) {
            return Err(format!("the merge of {} and {} needs the token {}, which is not in the vocabulary", show(a), show(b), show(token)));
        }
    }
    Ok(())
}

/// What `tokenizer_config.json` and its companions say.
struct Settings {
    model_max_length: Option<usize>,
    /// In the order of [`ROLES`].
    roles: [AddedToken; 4],
    /// By their numbers.
    added: BTreeMap<u32, AddedToken>,
}

impl Settings {
    /// Where `tokenizer_config.json` lists the added tokens it is the newer file and has the last word; else
    /// `special_tokens_map.json` has it.
    fn read(folder: &Path, files: &Files) -> Result<Settings> {
        let config = optional(&folder.join("tokenizer_config.json"))?;
        let mut roles = [START, END, END, END].map(|content| AddedToken::from(content, true));
        let mut added = BTreeMap::new();
        let mut model_max_length = None;
        let decoder = config.as_ref().and_then(|c| c.value("added_tokens_decoder"));
        if let Some(c) = &config {
            if let Some(class) = c.nullable_text("tokenizer_class")?
                && !["CLIPTokenizer", "CLIPTokenizerFast"].contains(&class.as_str())
            {
                return Err(c.error("tokenizer_class", format!("{class:?}, expected CLIPTokenizer")));
            }
            if !c.flag("do_lower_case", true)? || c.flag("split_special_tokens", false)? {
                return Err(c.error("do_lower_case", "expected CLIP's own: lower case, and special tokens that are found in texts"));
            }
            for side in ["padding_side", "truncation_side"] {
                c.require_or_absent(side, "right")?;
            }
            // transformers writes 1e30 where there is no limit.
            let length = c.number("model_max_length", 1e30, 2.0..=1e40)?;
            model_max_length = (length <= MOST_LENGTH as f64).then_some(length as usize);
            read_roles(c, &mut roles)?;
        }
        if let Some(Value::Object(map)) = decoder {
            for (id, token) in map {
                let id = id.parse().ok().filter(|id| (*id as usize) < MOST_TOKENS);
                let (c, fact) = (config.as_ref(), "expected numbers of tokens and what they are");
                let wrong = || c.map_or_else(|| Error::new(Kind::Config, "added_tokens_decoder", fact), |c| c.error("added_tokens_decoder", fact));
                added.insert(id.ok_or_else(wrong)?, token_of(token, None).ok_or_else(wrong)?);
            }
        } else {
            if let Some(map) = optional(&folder.join("special_tokens_map.json"))? {
                read_roles(&map, &mut roles)?;
            }
            read_added(folder, files, &roles, &mut added)?;
        }
        if let Some(c) = &config {
            c.ignore(OTHERS);
            c.finish()?;
        }
        // What a token is says the list of added tokens, where it names the token.
        for role in &mut roles {
            if let Some(listed) = added.values().find(|token| token.content == role.content) {
                *role = listed.clone();
            }
            role.special = true;
        }
        Ok(Settings { model_max_length, roles, added })
    }
}

/// Tokens of `added_tokens.json` (before transformers 4.34) and of tokenizer.json.
fn read_added(folder: &Path, files: &Files, roles: &[AddedToken], added: &mut BTreeMap<u32, AddedToken>) -> Result<()> {
    if let Some(old) = optional(&folder.join("added_tokens.json"))? {
        for (content, id) in old.all_integers(0..=MOST_TOKENS)? {
            let special = roles.iter().any(|role| role.content == content);
            added.insert(id as u32, AddedToken::from(content, special));
        }
    }
    for token in &files.added {
        let id = token.get("id").and_then(Value::as_u64).filter(|id| *id < MOST_TOKENS as u64);
        let (Some(id), Some(token)) = (id, token_of(token, None)) else {
            let place = format!("{}: added_tokens", folder.join("tokenizer.json").display());
            return Err(Error::new(Kind::Config, place, "expected a list of tokens with id and content"));
        };
        added.insert(id as u32, token);
    }
    Ok(())
}

fn optional(path: &Path) -> Result<Option<Config>> {
    path.is_file().then(|| Config::read(path)).transpose()
}

fn read_roles(c: &Config, roles: &mut [AddedToken; 4]) -> Result<()> {
    for (role, field) in roles.iter_mut().zip(ROLES) {
        if let Some(value) = c.value(field) {
            *role = token_of(value, Some(true)).ok_or_else(|| c.error(field, "expected a token: a text, or an object with its content"))?;
        }
    }
    Ok(())
}

/// A token as a text, or as an object of `content`, `lstrip`, `rstrip`, `single_word`, `normalized` and `special`.
fn token_of(value: &Value, special: Option<bool>) -> Option<AddedToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let is_special = special.or(flag("special")).unwrap_or(false);
    let content = value.as_str().or_else(|| value.get("content").and_then(Value::as_str))?;
    let token = AddedToken::from(content, is_special);
    Some(AddedToken {
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        single_word: flag("single_word").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(token.normalized),
        ..token
    })
}

fn first_line(error: tokenizers::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().chars().take(200).collect()
}

/// A token as an error shows it.
fn show(token: &str) -> String {
    let short: String = token.chars().take(40).collect();
    format!("{short:?}")
}
