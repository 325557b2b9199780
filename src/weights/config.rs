//! A checkpoint's own config.json, read strictly: every field is asked for, and what nobody asked for is an error.
//! Numbers have bounds, so that a hostile file can't make anybody allocate.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::Value;

use crate::base::error::edit_distance;
use crate::base::{Error, Kind, Result};
use crate::weights::json::{Object, shorten, why};

/// Largest file, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// The fields of one JSON object. Absent fields take a default where the getter has one; `null` is a value of its own,
/// which only the `nullable_*` getters take.
pub struct Config {
    place: String,
    fields: Vec<(String, Value)>,
    known: RefCell<BTreeSet<String>>,
}

impl Config {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Config> {
        let place = path.display().to_string();
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, &e))?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return Err(Error::new(Kind::Config, place, format!("{} bytes, expected a JSON file of at most {MAX_BYTES}", meta.len())));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
        let text = String::from_utf8(bytes).map_err(|_| Error::new(Kind::Config, place.clone(), "not UTF-8 text, expected JSON"))?;
        Self::parse(&text, &place)
    }

    /// Parses `text`; `place` names it in errors.
    pub fn parse(text: &str, place: &str) -> Result<Config> {
        let Object(fields) =
            serde_json::from_str(&infinities_as_texts(text)).map_err(|e| Error::new(Kind::Config, place, format!("expected a JSON object: {}", why(&e))))?;
        Ok(Config { place: place.to_string(), fields, known: RefCell::default() })
    }

    /// The file's name, as errors show it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether the field is there, be it `null`.
    pub fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|(name, _)| name == field)
    }

    /// An error at `field`.
    pub fn error(&self, field: &str, fact: impl Into<String>) -> Error {
        Error::new(Kind::Config, format!("{}: {field}", self.place), fact)
    }

    fn wrong(&self, field: &str, found: &Value, expected: &str) -> Error {
        self.error(field, format!("{}, expected {expected}", shorten(&found.to_string())))
    }

    fn absent(&self, field: &str, expected: &str) -> Error {
        self.error(field, format!("absent, expected {expected}"))
    }

    /// The value of a field that is there; marks the field as known.
    fn get(&self, field: &str) -> Option<&Value> {
        self.known.borrow_mut().insert(field.to_string());
        self.fields.iter().find(|(name, _)| name == field).map(|(_, value)| value)
    }

    /// Marks fields as known and of no consequence here.
    pub fn ignore(&self, fields: &[&str]) {
        self.known.borrow_mut().extend(fields.iter().map(|f| f.to_string()));
    }

    /// An integer in `range`; `default` when absent, and an error then when there is none.
    pub fn integer(&self, field: &str, default: impl Into<Option<usize>>, range: RangeInclusive<usize>) -> Result<usize> {
        match (self.get(field), default.into()) {
            (Some(value), _) => self.to_integer(field, value, &range),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.absent(field, &bounds(&range))),
        }
    }

    /// An integer in `range` or `null`.
    pub fn nullable_integer(&self, field: &str, default: Option<usize>, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        match self.get(field) {
            Some(Value::Null) => Ok(None),
            Some(value) => self.to_integer(field, value, &range).map(Some),
            None => Ok(default),
        }
    }

    fn to_integer(&self, field: &str, value: &Value, range: &RangeInclusive<usize>) -> Result<usize> {
        let integer = value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| range.contains(v));
        integer.ok_or_else(|| self.wrong(field, value, &bounds(range)))
    }

    /// A list of 1 to `longest` integers in `range`.
    pub fn integers(&self, field: &str, default: Option<&[usize]>, range: RangeInclusive<usize>, longest: usize) -> Result<Vec<usize>> {
        let expected = format!("a list of 1 to {longest}, each {}", bounds(&range));
        match (self.get(field), default) {
            (Some(value), _) => {
                let items = value.as_array().filter(|a| (1..=longest).contains(&a.len())).ok_or_else(|| self.wrong(field, value, &expected))?;
                items.iter().map(|item| self.to_integer(field, item, &range)).collect()
            }
            (None, Some(default)) => Ok(default.to_vec()),
            (None, None) => Err(self.absent(field, &expected)),
        }
    }

    /// One item for each of `count`: a list of as many, or one value for all. `item` gives None at what is not `expected`;
    /// `default` is taken when the field is absent.
    pub fn each<T: Clone>(&self, field: &str, default: T, count: usize, expected: &str, item: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
        let Some(value) = self.get(field) else { return Ok(vec![default; count]) };
        let items: Option<Vec<T>> = match value.as_array() {
            Some(list) if list.len() == count => list.iter().map(item).collect(),
            Some(_) => None,
            None => item(value).map(|one| vec![one; count]),
        };
        items.ok_or_else(|| self.wrong(field, value, &format!("{expected}, or a list of {count} of them")))
    }

    /// Requires `field` to be `null` or absent.
    pub fn require_null(&self, field: &str) -> Result<()> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(()),
            Some(value) => Err(self.wrong(field, value, "null: it is not supported")),
        }
    }

    /// A finite number in `range`.
    pub fn number(&self, field: &str, default: impl Into<Option<f64>>, range: RangeInclusive<f64>) -> Result<f64> {
        match (self.get(field), default.into()) {
            (Some(value), _) => self.to_number(field, value, &range),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.absent(field, &span(&range))),
        }
    }

    fn to_number(&self, field: &str, value: &Value, range: &RangeInclusive<f64>) -> Result<f64> {
        value.as_f64().filter(|v| range.contains(v)).ok_or_else(|| self.wrong(field, value, &span(range)))
    }

    /// A list of exactly `N` numbers in `range`.
    pub fn numbers<const N: usize>(&self, field: &str, default: Option<[f64; N]>, range: RangeInclusive<f64>) -> Result<[f64; N]> {
        let expected = format!("{N} times {}", span(&range));
        match (self.get(field), default) {
            (Some(value), _) => {
                let items = value.as_array().ok_or_else(|| self.wrong(field, value, &expected))?;
                let items: Vec<f64> = items.iter().map(|item| self.to_number(field, item, &range)).collect::<Result<_>>()?;
                items.try_into().map_err(|_| self.wrong(field, value, &expected))
            }
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.absent(field, &expected)),
        }
    }

    /// A list of 1 to `longest` numbers in `range`; None when absent or `null`.
    pub fn nullable_numbers(&self, field: &str, range: RangeInclusive<f64>, longest: usize) -> Result<Option<Vec<f64>>> {
        let value = match self.get(field) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let expected = || format!("a list of 1 to {longest}, each {}", span(&range));
        let items = value.as_array().filter(|a| (1..=longest).contains(&a.len())).ok_or_else(|| self.wrong(field, value, &expected()))?;
        items.iter().map(|item| self.to_number(field, item, &range)).collect::<Result<_>>().map(Some)
    }

    pub fn flag(&self, field: &str, default: impl Into<Option<bool>>) -> Result<bool> {
        match (self.get(field), default.into()) {
            (Some(value), _) => value.as_bool().ok_or_else(|| self.wrong(field, value, "true or false")),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.absent(field, "true or false")),
        }
    }

    /// A text.
    pub fn text(&self, field: &str, default: Option<&str>) -> Result<String> {
        match (self.get(field), default) {
            (Some(value), _) => value.as_str().map(str::to_string).ok_or_else(|| self.wrong(field, value, "a text")),
            (None, Some(default)) => Ok(default.to_string()),
            (None, None) => Err(self.absent(field, "a text")),
        }
    }

    /// A text; None when absent or `null`.
    pub fn nullable_text(&self, field: &str) -> Result<Option<String>> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_str().map(|text| Some(text.to_string())).ok_or_else(|| self.wrong(field, value, "a text or null")),
        }
    }

    /// One of `choices`; a value beside them is an error that lists them.
    pub fn choice<T: Copy>(&self, field: &str, default: Option<T>, choices: &[(&str, T)]) -> Result<T> {
        let chosen = match self.get(field) {
            Some(value) => Some(self.to_choice(field, value, choices)?),
            None => default,
        };
        chosen.ok_or_else(|| self.absent(field, &names(choices)))
    }

    /// One of `choices` or `null`.
    pub fn nullable_choice<T: Copy>(&self, field: &str, default: Option<T>, choices: &[(&str, T)]) -> Result<Option<T>> {
        match self.get(field) {
            Some(Value::Null) => Ok(None),
            Some(value) => self.to_choice(field, value, choices).map(Some),
            None => Ok(default),
        }
    }

    /// A list of 1 to `longest` of `choices`.
    pub fn choices<T: Copy>(&self, field: &str, default: Option<&[T]>, choices: &[(&str, T)], longest: usize) -> Result<Vec<T>> {
        let expected = || format!("a list of 1 to {longest}, each {}", names(choices));
        match (self.get(field), default) {
            (Some(value), _) => {
                let items = value.as_array().filter(|a| (1..=longest).contains(&a.len())).ok_or_else(|| self.wrong(field, value, &expected()))?;
                items.iter().map(|item| self.to_choice(field, item, choices)).collect()
            }
            (None, Some(default)) => Ok(default.to_vec()),
            (None, None) => Err(self.absent(field, &expected())),
        }
    }

    fn to_choice<T: Copy>(&self, field: &str, value: &Value, choices: &[(&str, T)]) -> Result<T> {
        let found = value.as_str().and_then(|text| choices.iter().find(|(name, _)| *name == text));
        found.map(|(_, choice)| *choice).ok_or_else(|| self.wrong(field, value, &names(choices)))
    }

    /// A list of up to `longest` texts; None when absent or `null`.
    pub fn texts(&self, field: &str, longest: usize) -> Result<Option<Vec<String>>> {
        let value = match self.get(field) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let wrong = || self.wrong(field, value, &format!("a list of at most {longest} texts"));
        let items = value.as_array().filter(|a| a.len() <= longest).ok_or_else(wrong)?;
        items.iter().map(|item| item.as_str().map(str::to_string).ok_or_else(wrong)).collect::<Result<_>>().map(Some)
    }

    /// The object in `field`; None when absent or `null`. Its own [`Config::finish`] must be called.
    pub fn object(&self, field: &str) -> Result<Option<Config>> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => {
                let fields = map.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
                Ok(Some(Config { place: format!("{}: {field}", self.place), fields, known: RefCell::default() }))
            }
            Some(value) => Err(self.wrong(field, value, "an object")),
        }
    }

    /// Names in the object in `field`; None when there is no object.
    pub fn object_names(&self, field: &str) -> Option<Vec<&str>> {
        let found = self.fields.iter().find(|(name, _)| name == field)?;
        found.1.as_object().map(|map| map.keys().map(String::as_str).collect())
    }

    /// Every field as an integer in `range`: a vocabulary. Fails at the first that is none.
    pub fn all_integers(&self, range: RangeInclusive<usize>) -> Result<Vec<(&str, usize)>> {
        self.fields.iter().map(|(name, value)| Ok((name.as_str(), self.to_integer(&shorten(name), value, &range)?))).collect()
    }

    /// Every field as a text. Fails at the first that is none.
    pub fn all_texts(&self) -> Result<Vec<(&str, &str)>> {
        let text = |name: &str, value: &Value| self.wrong(&shorten(name), value, "a text");
        self.fields.iter().map(|(name, value)| Ok((name.as_str(), value.as_str().ok_or_else(|| text(name, value))?))).collect()
    }

    /// The value of a field as it stands there; None when absent or `null`. For what the getters have no word for.
    pub fn value(&self, field: &str) -> Option<&Value> {
        self.get(field).filter(|value| !value.is_null())
    }

    /// Requires `field` to be exactly `expected`, a text.
    pub fn require(&self, field: &str, expected: &str) -> Result<()> {
        self.choice(field, None, &[(expected, ())])
    }

    /// Requires `field` to be `expected`, `null` or absent.
    pub fn require_or_absent(&self, field: &str, expected: &str) -> Result<()> {
        self.nullable_choice(field, None, &[(expected, ())]).map(|_| ())
    }

    /// Fails on fields that nobody asked for and names them. Names that begin with `_` are the writer's own remarks.
    pub fn finish(&self) -> Result<()> {
        let known = self.known.borrow();
        let unknown: Vec<&String> = self.fields.iter().map(|(name, _)| name).filter(|n| !known.contains(*n) && !n.starts_with('_')).collect();
        let Some(first) = unknown.first() else { return Ok(()) };
        let names: Vec<String> = unknown.iter().take(8).map(|n| format!("`{}`", shorten(n))).collect();
        let more = if unknown.len() > 8 { format!(" and {} more", unknown.len() - 8) } else { String::new() };
        let near = known.iter().map(|k| (edit_distance(k, &shorten(first)), k)).min().filter(|(d, _)| *d <= 3);
        let near = near.map_or(String::new(), |(_, k)| format!(", the nearest known field is `{k}`"));
        Err(Error::new(Kind::Config, self.place.clone(), format!("unknown or unsupported field {}{more}{near}", names.join(", "))))
    }
}

/// JSON with `-Infinity`, which Python writes and JSON does not have, as the text "-Infinity".
fn infinities_as_texts(text: &str) -> Cow<'_, str> {
    const WORD: &str = "-Infinity";
    if !text.contains(WORD) {
        return Cow::Borrowed(text);
    }
    // Texts stand between quotes, in which a backslash hides the next character.
    let (mut out, mut rest, mut in_text) = (String::with_capacity(text.len() + 16), text, false);
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '-' if !in_text && rest.starts_with(WORD) => {
                out += "\"-Infinity\"";
                rest = &rest[WORD.len()..];
                continue;
            }
            '\\' if in_text => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => first.len_utf8(),
        };
        in_text ^= first == '"';
        out += &rest[..length];
        rest = &rest[length..];
    }
    Cow::Owned(out)
}

fn bounds(range: &RangeInclusive<usize>) -> String {
    format!("an integer from {} to {}", range.start(), range.end())
}

fn span(range: &RangeInclusive<f64>) -> String {
    format!("a number from {} to {}", range.start(), range.end())
}

fn names<T>(choices: &[(&str, T)]) -> String {
    let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    if names.len() == 1 { names.concat() } else { format!("one of {}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_infinity_is_a_text() {
        let text = r#"{"a": -Infinity, "b-Infinity": "x \" -Infinity \\", "c": [-Infinity], "d": -1}"#;
        let want = r#"{"a": "-Infinity", "b-Infinity": "x \" -Infinity \\", "c": ["-Infinity"], "d": -1}"#;
        assert_eq!(infinities_as_texts(text), want);
        let config = Config::parse(text, "c").unwrap();
        assert!(config.number("a", None, -1.0..=1.0).unwrap_err().to_string().contains("\"-Infinity\", expected a number"));
        for torn in ["{\"a\": -Infinity\\", "-Infinity\"\\", "\"-Infinity\\", "\"\\é-Infinity"] {
            assert!(Config::parse(torn, "c").is_err());
        }
    }

    fn config(text: &str) -> Config {
        Config::parse(text, "config.json").unwrap()
    }

    #[test]
    fn getters_tell_absent_null_and_wrong_apart() {
        let c = config(r#"{"a": 3, "b": null, "d": -1, "e": 2.5, "f": "silu", "g": [1, 2], "h": true, "i": {"x": 1}}"#);
        assert_eq!(c.integer("a", None, 1..=4).unwrap(), 3);
        assert_eq!(c.integer("z", 7, 1..=9).unwrap(), 7);
        assert_eq!(c.nullable_integer("b", Some(8), 1..=9).unwrap(), None);
        assert_eq!(c.nullable_integer("z", Some(8), 1..=9).unwrap(), Some(8));
        assert_eq!(c.number("e", None, 0.0..=3.0).unwrap(), 2.5);
        assert_eq!(c.number("a", None, 0.0..=3.0).unwrap(), 3.0);
        assert_eq!(c.integers("g", None, 0..=9, 4).unwrap(), [1, 2]);
        assert_eq!(c.numbers::<2>("g", None, 0.0..=9.0).unwrap(), [1.0, 2.0]);
        assert_eq!(c.nullable_numbers("g", 0.0..=9.0, 2).unwrap().unwrap(), [1.0, 2.0]);
        assert!(c.nullable_numbers("b", 0.0..=9.0, 2).unwrap().is_none());
        assert!(c.flag("h", None).unwrap());
        assert_eq!(c.choice("f", None, &[("silu", 1), ("relu", 2)]).unwrap(), 1);
        assert_eq!(c.object("i").unwrap().unwrap().integer("x", None, 0..=1).unwrap(), 1);
        let small = |v: &Value| v.as_u64().filter(|&v| v < 9);
        assert_eq!(c.each("a", 1, 2, "a digit", small).unwrap(), [3, 3]);
        assert_eq!(c.each("g", 1, 2, "a digit", small).unwrap(), [1, 2]);
        assert_eq!(c.each("z", 1, 2, "a digit", small).unwrap(), [1, 1]);
        c.require_null("b").unwrap();
        let rows: Vec<(Error, &str)> = vec![
            (c.each("g", 1, 3, "a digit", small).unwrap_err(), "config.json: g: [1,2], expected a digit, or a list of 3 of them"),
            (c.each("d", 1, 3, "a digit", small).unwrap_err(), "config.json: d: -1, expected a digit, or a list of 3 of them"),
            (c.require_null("a").unwrap_err(), "config.json: a: 3, expected null: it is not supported"),
            (c.integer("d", None, 1..=4).unwrap_err(), "config.json: d: -1, expected an integer from 1 to 4"),
            (c.integer("e", None, 1..=4).unwrap_err(), "config.json: e: 2.5, expected an integer from 1 to 4"),
            (c.integer("b", 3, 1..=4).unwrap_err(), "config.json: b: null, expected an integer from 1 to 4"),
            (c.integer("z", None, 1..=4).unwrap_err(), "config.json: z: absent, expected an integer from 1 to 4"),
            (c.integers("g", None, 0..=1, 4).unwrap_err(), "config.json: g: 2, expected an integer from 0 to 1"),
            (c.numbers::<3>("g", None, 0.0..=9.0).unwrap_err(), "config.json: g: [1,2], expected 3 times a number from 0 to 9"),
            (c.nullable_numbers("g", 0.0..=1.0, 4).unwrap_err(), "config.json: g: 2, expected a number from 0 to 1"),
            (c.nullable_numbers("g", 0.0..=9.0, 1).unwrap_err(), "config.json: g: [1,2], expected a list of 1 to 1, each a number from 0 to 9"),
            (c.choice("f", None, &[("mish", 1), ("relu", 2)]).unwrap_err(), "config.json: f: \"silu\", expected one of \"mish\", \"relu\""),
            (c.flag("a", None).unwrap_err(), "config.json: a: 3, expected true or false"),
            (c.finish().err().unwrap_or_else(|| c.error("x", "")), "config.json: x: "),
        ];
        for (error, want) in rows {
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn unknown_fields_and_repeated_ones_are_errors() {
        let c = config(r#"{"_class_name": "X", "in_chanels": 3, "other": {}}"#);
        c.integer("in_channels", 3, 1..=4).unwrap();
        assert_eq!(
            c.finish().unwrap_err().to_string(),
            "config.json: unknown or unsupported field `in_chanels`, `other`, the nearest known field is `in_channels`"
        );
        c.ignore(&["in_chanels", "other"]);
        c.finish().unwrap();
        assert!(Config::parse(r#"{"a":1,"a":2}"#, "x").err().unwrap().to_string().contains("twice"));
        for text in ["", "[]", "{", "nul", "{\"a\":NaN}", &"[".repeat(100_000), &"{\"a\":".repeat(5000)] {
            assert!(Config::parse(text, "x").is_err(), "{}", shorten(text));
        }
    }
}
