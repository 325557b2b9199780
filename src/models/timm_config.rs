//! A classifier's config.json as timm writes it (`timm.models.save_for_hf`), shared by all classifier families.
//! Two forms are in the wild: with the pre-processing inside `pretrained_cfg`, and the older flat one.

use crate::base::Result;
use crate::models::model::timm_architecture;
use crate::models::preprocess::Preprocess;
use crate::weights::Config;

/// Most classes that a configuration may name.
const MOST_CLASSES: usize = 1_000_000;

/// What a published `pretrained_cfg` says about its origin, its tests and the names of its layers, which the file's own
/// names tell: of no consequence for a forward pass.
const OF_ORIGIN: [&str; 24] = [
    "tag",
    "url",
    "file",
    "hf_hub_id",
    "hf_hub_filename",
    "source",
    "architecture",
    "custom_load",
    "license",
    "description",
    "origin_url",
    "paper_name",
    "paper_ids",
    "notes",
    "test_input_size",
    "test_crop_pct",
    "test_pool_size",
    "min_input_size",
    "fixed_input_size",
    "pool_size",
    "first_conv",
    "classifier",
    "label_offset",
    "label_descriptions",
];

/// Arguments that act in training only.
const OF_TRAINING: [&str; 9] = [
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "proj_drop_rate",
    "pos_drop_rate",
    "attn_drop_rate",
    "patch_drop_rate",
    "head_drop_rate",
    "zero_init_last",
];

/// The part of a config.json that every family reads alike.
#[derive(Clone, Debug, PartialEq)]
pub struct TimmConfig {
    /// Without its tag: `resnet50` of `resnet50.a1_in1k`.
    pub architecture: String,
    /// None: as many as the last layer's weight has rows. 0: the checkpoint has no last layer.
    pub num_classes: Option<usize>,
    /// Width of the last feature map, as the writer believes it.
    pub num_features: Option<usize>,
    /// Names of the classes in the order of the logits.
    pub label_names: Option<Vec<String>>,
    /// How the last feature map becomes features: `avg`, `token`, ... None: as the architecture was published.
    pub global_pool: Option<String>,
    pub preprocess: Preprocess,
}

impl TimmConfig {
    /// Reads all of `c`, strictly. `arguments` reads what the family knows of `model_args` (arguments that changed the
    /// model's construction; None when there are none); what neither it nor this function asked for is an error.
    pub fn read<T>(c: &Config, arguments: impl FnOnce(Option<&Config>) -> Result<T>) -> Result<(TimmConfig, T)> {
        let architecture = architecture_of(c)?;
        let num_classes = if c.has("num_classes") { Some(c.integer("num_classes", None, 0..=MOST_CLASSES)?) } else { None };
        let pretrained = c.object("pretrained_cfg")?;
        let told = pretrained.as_ref().filter(|p| p.has("num_classes")).map(|p| p.integer("num_classes", None, 0..=MOST_CLASSES)).transpose()?;
        let (num_classes, label_place) = match (num_classes, told, &pretrained) {
            (Some(here), Some(there), Some(p)) if here != there => {
                return Err(p.error("num_classes", format!("{there}, expected {here} as the file says further out")));
            }
            (here, there, p) => (here.or(there), p.as_ref().filter(|_| !c.has("label_names") && !c.has("labels")).unwrap_or(c)),
        };
        let label_names = labels(label_place, num_classes)?;
        let stored = c.object("model_args")?;
        let own = arguments(stored.as_ref())?;
        let mut global_pool = read_global_pool(c)?;
        if let Some(stored) = &stored {
            let pool = read_global_pool(stored)?;
            read_common_arguments(stored, num_classes)?;
            global_pool = pool.or(global_pool);
        }
        c.ignore(&["label_descriptions"]);
        let preprocess = match &pretrained {
            Some(p) => {
                p.ignore(&OF_ORIGIN);
                p.ignore(&["label_names"]);
                let preprocess = Preprocess::read(p)?;
                p.finish()?;
                preprocess
            }
            None => {
                c.ignore(&OF_ORIGIN);
                Preprocess::read(c)?
            }
        };
        let num_features = c.nullable_integer("num_features", None, 1..=1_000_000)?;
        c.finish()?;
        Ok((TimmConfig { architecture, num_classes, num_features, label_names, global_pool, preprocess }, own))
    }

    /// Like [`TimmConfig::read`] for a family whose features are the mean over the image: another `global_pool` is an error.
    pub fn read_averaging<T>(c: &Config, arguments: impl FnOnce(Option<&Config>) -> Result<T>) -> Result<(TimmConfig, T)> {
        let (config, own) = Self::read(c, arguments)?;
        match config.global_pool.as_deref() {
            None | Some("avg" | "fast" | "fastavg") => Ok((config, own)),
            Some(other) => Err(c.error("global_pool", format!("\"{other}\", expected \"avg\""))),
        }
    }
}

/// The architecture that `c` names, without its tag.
pub fn architecture_of(c: &Config) -> Result<String> {
    timm_architecture(c).map_or_else(|| c.text("architecture", None), Ok)
}

fn read_common_arguments(c: &Config, num_classes: Option<usize>) -> Result<()> {
    let classes = num_classes.unwrap_or(0);
    c.integer("num_classes", classes, num_classes.map_or(0..=MOST_CLASSES, |n| n..=n))?;
    c.integer("in_chans", 3, 3..=3)?;
    c.ignore(&OF_TRAINING);
    c.finish()
}

/// None when absent, `null` or empty.
fn read_global_pool(c: &Config) -> Result<Option<String>> {
    Ok(c.nullable_text("global_pool")?.filter(|text| !text.is_empty()))
}

/// `label_names` (or its older name `labels`): a list, or an object from the class's number to its name.
/// Names of the classes: a list, or an object by their numbers.
pub fn labels(c: &Config, num_classes: Option<usize>) -> Result<Option<Vec<String>>> {
    let field = if c.has("label_names") { "label_names" } else { "labels" };
    let names = match c.object_names(field) {
        Some(numbers) => {
            let Some(table) = c.object(field)? else { return Ok(None) };
            let count = numbers.len();
            let name = |i: usize| table.text(&i.to_string(), None);
            Some((0..count).map(name).collect::<Result<Vec<_>>>()?)
        }
        None => c.texts(field, MOST_CLASSES)?,
    };
    if let (Some(names), Some(classes)) = (&names, num_classes)
        && names.len() != classes
    {
        return Err(c.error(field, format!("{} names, expected {classes} as num_classes says", names.len())));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TimmConfig> {
        TimmConfig::read_averaging(&Config::parse(text, "config.json").unwrap(), |_| Ok(())).map(|(config, ())| config)
    }

    #[test]
    fn a_published_config_is_read() {
        let c = parse(
            r#"{"architecture": "resnet18.a1_in1k", "num_classes": 1000, "num_features": 512, "global_pool": "avg",
            "model_args": {"num_classes": 1000, "in_chans": 3, "global_pool": "avg", "drop_rate": 0.2},
            "pretrained_cfg": {"tag": "a1_in1k", "custom_load": false, "input_size": [3, 224, 224], "test_input_size": [3, 288, 288],
            "fixed_input_size": false, "interpolation": "bicubic", "crop_pct": 0.95, "test_crop_pct": 1.0, "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 1000, "pool_size": [7, 7], "first_conv": ["conv1", "x"],
            "classifier": ["head", "head_dist"], "license": "apache-2.0", "origin_url": "https://x", "paper_ids": "arXiv:2110.00476"}}"#,
        )
        .unwrap();
        assert_eq!((c.architecture.as_str(), c.num_classes, c.preprocess.crop_pct), ("resnet18", Some(1000), 0.95));
        assert_eq!((c.preprocess.input_size, c.preprocess.assumed), ([224, 224], false));
    }

    #[test]
    fn the_flat_form_and_both_forms_of_labels_are_read() {
        let flat = r#"{"architecture": "densenet121", "num_classes": 2, "num_features": 1024, "labels": ["a", "b"], "url": "", "pool_size": null,
            "input_size": [3, 96, 128], "crop_pct": 0.9, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "first_conv": "features.conv0"}"#;
        let c = parse(flat).unwrap();
        assert_eq!((c.preprocess.input_size, c.label_names.unwrap()), ([96, 128], vec!["a".to_string(), "b".to_string()]));
        let c = parse(r#"{"architecture": "x", "num_classes": 2, "pretrained_cfg": {"label_names": {"1": "b", "0": "a"}}}"#).unwrap();
        assert_eq!((c.label_names.unwrap(), c.preprocess.assumed), (vec!["a".to_string(), "b".to_string()], true));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let rows = [
            (r#""num_classes": 2, "pretrained_cfg": {"num_classes": 3}"#, "config.json: pretrained_cfg: num_classes: 3, expected 2"),
            (r#""pretrained_cfg": {"std": [0, 1, 1]}"#, "config.json: pretrained_cfg: std: 0, expected a number from"),
            (r#""pretrained_cfg": {"input_size": [1, 8, 8]}"#, "config.json: pretrained_cfg: input_size: [1, 8, 8], expected [3, height, width]"),
            (r#""pretrained_cfg": {"blur": 1}"#, "config.json: pretrained_cfg: unknown or unsupported field `blur`"),
            (r#""num_classes": 2, "label_names": ["a"]"#, "config.json: label_names: 1 names, expected 2"),
            (r#""num_classes": 2, "label_names": {"0": "a", "2": "b"}"#, "config.json: label_names: 1: absent"),
            (r#""global_pool": "catavgmax""#, "config.json: global_pool: \"catavgmax\", expected \"avg\""),
            (r#""num_classes": 2, "model_args": {"num_classes": 3}"#, "config.json: model_args: num_classes: 3, expected"),
            (r#""model_args": {"stem_type": "deep"}"#, "config.json: model_args: unknown"),
        ];
        for (fields, want) in rows {
            let error = parse(&format!(r#"{{"architecture": "resnet18", {fields}}}"#)).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
