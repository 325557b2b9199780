//! Names of one project's checkpoints as another's: rows of two places, read in both directions.

use std::collections::BTreeMap;

use crate::base::Result;
use crate::weights::{Fate, Part, Store};

/// How a tensor of the model lies in the file's tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Same,
    /// `[O, I]` of a convolution's `[O, I, 1, 1]`.
    Pointwise,
    /// One of three equal ranges of rows.
    Third(usize),
    /// `[O, I]` of `[I, O]`.
    Transposed,
}

impl View {
    fn part(self) -> Part {
        match self {
            View::Same => Part::whole(),
            View::Pointwise => Part::whole().squeezed(),
            View::Third(index) => Part::whole().share(index, 3),
            View::Transposed => Part::whole().transposed(),
        }
    }
}

/// A place in the file, a place in the model. What follows a place is equal on both sides: `.weight`, `.bias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub file: String,
    pub model: String,
    pub view: View,
}

/// Every place that a checkpoint of some configuration may have.
#[derive(Clone, Debug, Default)]
pub struct NameMap {
    rows: Vec<Row>,
    /// Indices of rows. A place in the file has several when its tensor holds several of the model's.
    by_file: BTreeMap<String, Vec<usize>>,
    by_model: BTreeMap<String, usize>,
}

impl NameMap {
    pub fn new() -> NameMap {
        Self::default()
    }

    pub fn add(&mut self, file: impl Into<String>, model: impl Into<String>, view: View) {
        let row = Row { file: file.into(), model: model.into(), view };
        self.by_file.entry(row.file.clone()).or_default().push(self.rows.len());
        self.by_model.insert(row.model.clone(), self.rows.len());
        self.rows.push(row);
    }

    /// Places below `file` and `model` whose last steps are those of `table`.
    pub fn add_below(&mut self, file: &str, model: &str, table: &[(&str, &str, View)]) {
        for (last_file, last_model, view) in table {
            self.add(format!("{file}.{last_file}"), format!("{model}.{last_model}"), *view);
        }
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The model's tensors in the file's tensor `name`; none where no row knows it.
    pub fn to_model(&self, name: &str) -> Vec<(String, View)> {
        let Some((rows, rest)) = places(name).find_map(|(place, rest)| Some((self.by_file.get(place)?, rest))) else { return Vec::new() };
        rows.iter().map(|&row| (format!("{}{rest}", self.rows[row].model), self.rows[row].view)).collect()
    }

    /// The file's tensor that holds the model's `name`.
    pub fn to_file(&self, name: &str) -> Option<(String, View)> {
        let (&row, rest) = places(name).find_map(|(place, rest)| Some((self.by_model.get(place)?, rest)))?;
        Some((format!("{}{rest}", self.rows[row].file), self.rows[row].view))
    }

    /// The store under the model's names. What no row knows is dropped where `is_dropped` says so; else it keeps its name, and
    /// the model reports it.
    pub fn apply(&self, store: Store, is_dropped: impl Fn(&str) -> bool) -> Result<Store> {
        store.renamed(|name, _| {
            let targets = self.to_model(name);
            match targets.as_slice() {
                [] if is_dropped(name) => Fate::Drop,
                [] => Fate::Keep,
                _ => Fate::Split(targets.into_iter().map(|(name, view)| (name, view.part())).collect()),
            }
        })
    }
}

/// A name cut at each of its dots, the longest place first.
fn places(name: &str) -> impl Iterator<Item = (&str, &str)> {
    std::iter::once((name, "")).chain(name.rmatch_indices('.').map(|(at, _)| name.split_at(at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Writer;

    /// The numbers that diffusers' `convert_open_clip_checkpoint` takes: rows of queries, keys and values in this order.
    #[test]
    fn views_hold_their_own_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut writer = Writer::new();
        writer.f32("attn.in_proj_weight", &[6, 2], (0..12u8).map(f32::from).collect()).unwrap();
        writer.f32("text_projection", &[2, 3], (0..6u8).map(f32::from).collect()).unwrap();
        writer.f32("q.weight", &[2, 1, 1, 1], vec![7.0, 8.0]).unwrap();
        writer.f32("logit_scale", &[], vec![1.0]).unwrap();
        writer.f32("other", &[1], vec![1.0]).unwrap();
        writer.write(&path).unwrap();
        let mut map = NameMap::new();
        for (index, name) in ["q_proj.weight", "k_proj.weight", "v_proj.weight"].into_iter().enumerate() {
            map.add("attn.in_proj_weight", name, View::Third(index));
        }
        map.add("text_projection", "text_projection.weight", View::Transposed);
        map.add("q.weight", "to_q.weight", View::Pointwise);
        let store = map.apply(Store::open(&path).unwrap(), |name| name == "logit_scale").unwrap();
        let expected: [(&str, &[usize], &[f32]); 5] = [
            ("q_proj.weight", &[2, 2], &[0.0, 1.0, 2.0, 3.0]),
            ("k_proj.weight", &[2, 2], &[4.0, 5.0, 6.0, 7.0]),
            ("v_proj.weight", &[2, 2], &[8.0, 9.0, 10.0, 11.0]),
            ("text_projection.weight", &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
            ("to_q.weight", &[2, 1], &[7.0, 8.0]),
        ];
        for (name, shape, values) in expected {
            let array = store.array(name).unwrap();
            assert_eq!((array.dims(), array.data.as_slice()), (shape, values), "{name}");
        }
        assert_eq!((store.dropped(), store.shape("other")), (&["logit_scale".to_string()][..], Some(&[1][..])));
    }

    #[test]
    fn the_longest_place_is_taken_whole_steps_only() {
        let mut map = NameMap::new();
        map.add("out.0", "conv_norm_out", View::Same);
        map.add("out", "conv_out", View::Pointwise);
        for part in 0..3 {
            map.add("in_proj", format!("part{part}"), View::Third(part));
        }
        assert_eq!(map.to_model("out.0.weight"), [("conv_norm_out.weight".to_string(), View::Same)]);
        assert_eq!(map.to_model("out.1.weight"), [("conv_out.1.weight".to_string(), View::Pointwise)]);
        assert!(map.to_model("output.0.weight").is_empty() && map.to_file("conv_out2").is_none());
        assert_eq!(map.to_file("part2.bias"), Some(("in_proj.bias".to_string(), View::Third(2))));
        assert_eq!(map.to_model("in_proj").len(), 3);
    }
}
