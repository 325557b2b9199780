//! JSON objects whose repeated names are errors: serde_json alone keeps the last one without a word.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

/// A JSON object as (name, value) in file order. A repeated name does not parse.
pub(crate) struct Object(pub Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{}` stands there twice", shorten(&name))));
                    }
                    pairs.push((name, map.next_value()?));
                }
                Ok(Object(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Why a text did not parse, in at most 200 characters: serde quotes a wrong value whole. The place in the text stands at the end.
pub(crate) fn why(error: &serde_json::Error) -> String {
    let text: Vec<char> = error.to_string().chars().collect();
    if text.len() <= 200 { text.iter().collect() } else { text[..137].iter().chain(&['.', '.', '.']).chain(&text[text.len() - 60..]).collect() }
}

/// A name or value as an error shows it: at most 80 characters.
pub(crate) fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_string() } else { text.chars().take(77).chain("...".chars()).collect() }
}
