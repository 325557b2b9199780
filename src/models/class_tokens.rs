//! Class tokens: learned embeddings that stand in the place of a prompt's. A safetensors file with one tensor per class,
//! named as the class, `[L, D]` or `[D]`, and one named `null` for no class; or one tensor `class_tokens`
//! `[classes + 1, L, D]` in the order of the class names, the null class last.

use std::path::Path;

use crate::base::{Array, Error, Kind, Result};
use crate::plan::Weight;
use crate::weights::Store;

/// The denoiser's input that takes them.
pub const PORT: &str = "encoder_hidden_states";
/// The tensor of all classes.
const ALL: &str = "class_tokens";
/// The tensor of no class.
const NULL: &str = "null";

/// Tokens of every class and of the null class, `[classes + 1, L, D]`. Fails at classes without tokens, tokens without a class,
/// and shapes that differ.
pub fn read(path: &Path, class_names: &[String]) -> Result<Weight> {
    let store = Store::open(path)?;
    let array = if store.shape(ALL).is_some() { one(&store, class_names)? } else { one_each(&store, class_names)? };
    Ok(Weight::new(ALL, array))
}

/// Whether a file of tensors is one: tables under names without dots, `null` among them, or the one of all classes.
pub fn is_store(store: &Store) -> bool {
    let is_table = |name: &str| !name.contains('.') && store.shape(name).is_some_and(|shape| (1..=2).contains(&shape.len()));
    let of_all = store.shape(ALL).is_some_and(|shape| shape.len() == 3) && store.names().count() == 1;
    of_all || (store.shape(NULL).is_some() && store.names().count() > 1 && store.names().all(is_table))
}

/// Names of the classes of a file with one tensor per class, in the order of the alphabet.
pub fn class_names(path: &Path) -> Result<Vec<String>> {
    let store = Store::open(path)?;
    let names: Vec<String> = store.names().filter(|name| *name != NULL).map(str::to_string).collect();
    if names.is_empty() || names.iter().any(|name| name == ALL) {
        return Err(wrong(&store, "one tensor of all classes, expected one per class, which names it".to_string()));
    }
    Ok(names)
}

fn wrong(store: &Store, fact: String) -> Error {
    Error::new(Kind::Weights, store.place(), fact)
}

fn one(store: &Store, class_names: &[String]) -> Result<Array> {
    let array = store.array(ALL)?;
    let rows = class_names.len() + 1;
    match *array.dims() {
        [n, _, _] if n == rows => Ok(array),
        _ => Err(wrong(store, format!("{ALL} is {:?}, expected [{rows}, tokens, width]: {} classes and the null class", array.dims(), rows - 1))),
    }
}

fn one_each(store: &Store, class_names: &[String]) -> Result<Array> {
    let wanted = || class_names.iter().map(String::as_str).chain([NULL]);
    if let Some(name) = wanted().find(|name| store.shape(name).is_none()) {
        return Err(wrong(store, format!("no tensor `{name}`, expected one for each of {}", wanted().collect::<Vec<_>>().join(", "))));
    }
    if let Some(name) = store.names().find(|name| !wanted().any(|w| w == *name)) {
        return Err(wrong(store, format!("tensor `{name}` is of no class, expected {}", wanted().collect::<Vec<_>>().join(", "))));
    }
    let mut rows = Vec::new();
    let mut shape: Option<[usize; 2]> = None;
    for name in wanted() {
        let array = store.array(name)?;
        let found = match *array.dims() {
            [width] => [1, width],
            [tokens, width] => [tokens, width],
            _ => return Err(wrong(store, format!("`{name}` is {:?}, expected [tokens, width]", array.dims()))),
        };
        if *shape.get_or_insert(found) != found {
            return Err(wrong(store, format!("`{name}` is {found:?}, expected {:?} as the classes before", shape.unwrap_or(found))));
        }
        rows.extend(array.data);
    }
    let [tokens, width] = shape.unwrap_or_default();
    Array::new(&[class_names.len() + 1, tokens, width], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Writer;

    fn file(tensors: &[(&str, &[usize], f32)]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.safetensors");
        let mut writer = Writer::new();
        for (name, shape, value) in tensors {
            writer.f32(name, shape, vec![*value; shape.iter().product()]).unwrap();
        }
        writer.write(&path).unwrap();
        (dir, path)
    }

    #[test]
    fn rows_are_in_the_order_of_the_classes() {
        let names = ["vasc".to_string(), "df".to_string()];
        let (_dir, path) = file(&[("df", &[2, 3], 2.0), ("null", &[2, 3], 0.0), ("vasc", &[2, 3], 1.0)]);
        let tokens = read(&path, &names).unwrap();
        assert_eq!((tokens.dims(), tokens.array.values()[0], tokens.array.values()[6], tokens.array.values()[12]), (&[3usize, 2, 3][..], 1.0, 2.0, 0.0));
        assert_eq!(class_names(&path).unwrap(), ["df", "vasc"]);
        let (_dir, path) = file(&[("class_tokens", &[3, 2, 4], 1.0)]);
        assert_eq!(read(&path, &names).unwrap().dims(), [3, 2, 4]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let names = ["df".to_string()];
        let rows: [(&[(&str, &[usize], f32)], &str); 4] = [
            (&[("df", &[2, 3], 1.0)], "no tensor `null`, expected one for each of df, null"),
            (&[("df", &[2, 3], 1.0), ("null", &[3], 1.0)], "`null` is [1, 3], expected [2, 3]"),
            (&[("df", &[3], 1.0), ("null", &[3], 1.0), ("nv", &[3], 1.0)], "tensor `nv` is of no class"),
            (&[("class_tokens", &[3, 2, 4], 1.0)], "class_tokens is [3, 2, 4], expected [2, tokens, width]"),
        ];
        for (tensors, want) in rows {
            let (_dir, path) = file(tensors);
            let error = read(&path, &names).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
