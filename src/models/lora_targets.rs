//! Every name by which LoRA files call the modules of a model: its own, those of older versions, those of the latent diffusion
//! code, and each of them with `_` for dots. The table is made from the model's own names, so that no name is guessed apart.

use std::collections::BTreeMap;

use crate::models::ldm_names::{self, UnetShape};
use crate::models::lora_names::{LoraPart, Place};
use crate::models::name_map::NameMap;
use crate::nn::attention::OLD_NAMES;
use crate::weights::Store;

/// Bound of a hostile file: no published model comes near.
const MAX_BLOCKS: usize = 64;
/// The first step of text encoders' names, which newer transformers leave out.
const TEXT: &str = "text_model.";

/// Names and the modules that they mean; None: they mean several.
#[derive(Debug, Default)]
pub struct Targets {
    dotted: BTreeMap<String, Option<String>>,
    flat: BTreeMap<String, Option<String>>,
}

impl Targets {
    /// The modules of a store under the model's names: all that have a `weight` of two axes or more.
    pub fn of(store: &Store, part: LoraPart) -> Targets {
        let mut targets = Targets::default();
        let has_axes = |name: &str| store.shape(name).is_some_and(|shape| shape.len() >= 2);
        let modules: Vec<&str> = store.names().filter(|name| has_axes(name)).filter_map(|name| name.strip_suffix(".weight")).collect();
        let ldm = if part == LoraPart::Unet { ldm_map(&modules) } else { None };
        for module in modules {
            targets.add(module, module);
            for alias in aliases(module, part) {
                targets.add(&alias, module);
            }
            if let Some((name, _)) = ldm.as_ref().and_then(|map| map.to_file(module)) {
                targets.add(&name, module);
            }
        }
        targets
    }

    fn add(&mut self, name: &str, module: &str) {
        for (table, name) in [(&mut self.dotted, name.to_string()), (&mut self.flat, flattened(name))] {
            let found = table.entry(name).or_insert_with(|| Some(module.to_string()));
            if found.as_deref() != Some(module) {
                *found = None;
            }
        }
    }

    /// The module that `place` means; None where there is none, or several.
    pub fn find(&self, place: &Place) -> Option<&str> {
        let table = if place.flat { &self.flat } else { &self.dotted };
        table.get(&place.module)?.as_deref()
    }
}

/// kohya's writing.
pub fn flattened(name: &str) -> String {
    name.replace('.', "_")
}

fn aliases(module: &str, part: LoraPart) -> Vec<String> {
    match part {
        LoraPart::TextEncoder | LoraPart::TextEncoder2 => {
            let bare = module.strip_prefix(TEXT).map(str::to_string);
            vec![bare.unwrap_or_else(|| format!("{TEXT}{module}"))]
        }
        LoraPart::Unet => {
            let (place, last) = module.rsplit_once('.').unwrap_or(("", module));
            OLD_NAMES.iter().filter(|(old, _)| *old == last).map(|(_, new)| format!("{place}.{new}")).collect()
        }
        LoraPart::Other => Vec::new(),
    }
}

/// The latent diffusion code's names of a UNet's places; None: it has no such names, its levels are not alike.
fn ldm_map(modules: &[&str]) -> Option<NameMap> {
    let has = |begin: String| modules.iter().any(|module| module.starts_with(&begin));
    let count = |begin: &dyn Fn(usize) -> String| (0..MAX_BLOCKS).take_while(|&i| has(begin(i))).count();
    let levels = count(&|level| format!("down_blocks.{level}."));
    let layers: Vec<usize> = (0..levels).map(|level| count(&|layer| format!("down_blocks.{level}.resnets.{layer}."))).collect();
    let same = layers.iter().all(|&n| Some(&n) == layers.first());
    let attention = (0..levels).map(|level| has(format!("down_blocks.{level}.attentions.0."))).collect();
    let label_embedding = ["add_embedding", "class_embedding"].into_iter().find(|name| has(format!("{name}.linear_1")));
    let shape = UnetShape { layers: *layers.first().filter(|_| same)?, attention, label_embedding };
    Some(ldm_names::unet(&shape))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ldm_names::tests::{Told, told};
    use crate::weights::Writer;

    fn find(targets: &Targets, module: &str, flat: bool) -> Option<String> {
        targets.find(&Place { part: None, module: module.to_string(), flat }).map(str::to_string)
    }

    /// A store of these names with a few numbers each.
    fn store<'a>(names: impl Iterator<Item = &'a str>) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut writer = Writer::new();
        names.for_each(|name| writer.f32(name, &[1, 1], vec![0.0]).unwrap());
        writer.write(&path).unwrap();
        Store::open(&path).unwrap()
    }

    /// Both writings of every module of a full-size UNet mean that module and no other.
    fn holds(list: &str) -> usize {
        let list: Vec<Told> = told(list).into_iter().filter(|told| told.part == "unet" && told.shape.len() >= 2).collect();
        let targets = Targets::of(&store(list.iter().map(|told| told.only_model())), LoraPart::Unet);
        for told in &list {
            let module = told.only_model().strip_suffix(".weight").unwrap();
            let ldm = told.file.strip_prefix("model.diffusion_model.").and_then(|name| name.strip_suffix(".weight")).unwrap();
            for name in [module, ldm] {
                assert_eq!(find(&targets, &flattened(name), true).as_deref(), Some(module), "{name}");
                assert_eq!(find(&targets, name, false).as_deref(), Some(module), "{name}");
            }
        }
        assert!(targets.flat.values().chain(targets.dotted.values()).all(Option::is_some));
        list.len()
    }

    #[test]
    fn published_unets_have_both_names_and_none_means_two() {
        assert_eq!(holds(include_str!("../../tests/golden/names/sd1-inpaint.txt")), 282);
        assert!(holds(include_str!("../../tests/golden/names/sd2-depth.txt")) > 200);
        assert!(holds(include_str!("../../tests/golden/names/sdxl.txt")) > 700);
        assert!(holds(include_str!("../../tests/golden/names/sdxl-refiner.txt")) > 200);
    }

    #[test]
    fn older_names_are_known() {
        let unet = store(["mid_block.attentions.0.query.weight", "mid_block.attentions.0.proj_attn.weight", "norm.bias"].into_iter());
        let targets = Targets::of(&unet, LoraPart::Unet);
        assert_eq!(find(&targets, "mid_block.attentions.0.to_q", false).as_deref(), Some("mid_block.attentions.0.query"));
        assert_eq!(find(&targets, "mid_block_attentions_0_to_out_0", true).as_deref(), Some("mid_block.attentions.0.proj_attn"));
        assert_eq!(find(&targets, "norm", false), None);
        let text = Targets::of(&store(["encoder.layers.0.mlp.fc1.weight"].into_iter()), LoraPart::TextEncoder);
        assert_eq!(find(&text, "text_model_encoder_layers_0_mlp_fc1", true).as_deref(), Some("encoder.layers.0.mlp.fc1"));
        let text = Targets::of(&store(["text_model.encoder.layers.0.mlp.fc1.weight"].into_iter()), LoraPart::TextEncoder2);
        assert_eq!(find(&text, "encoder.layers.0.mlp.fc1", false).as_deref(), Some("text_model.encoder.layers.0.mlp.fc1"));
    }

    #[test]
    fn a_name_of_two_modules_means_none() {
        let targets = Targets::of(&store(["a.b_c.weight", "a_b.c.weight"].into_iter()), LoraPart::Other);
        assert_eq!(find(&targets, "a_b_c", true), None);
        assert_eq!(find(&targets, "a.b_c", false).as_deref(), Some("a.b_c"));
    }
}
