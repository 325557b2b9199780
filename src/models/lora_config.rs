//! What PEFT says beside a LoRA's tensors: adapter_config.json of a folder, or the text `lora_adapter_metadata` in a file of
//! diffusers 0.34 and later. Read strictly: a setting that changes what the tensors mean is used or refused.
//! Source: `peft/tuners/lora/config.py` (`LoraConfig`), `peft/utils/other.py` (`get_pattern_key`); Kalajdzievski, "A Rank
//! Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732.

use serde_json::{Map, Value};

use crate::base::Result;
use crate::models::lora_names::LoraPart;
use crate::weights::Config;

const MAX_RANK: usize = 1 << 16;
const MAX_ALPHA: f64 = 1e9;
/// Most rows of a pattern.
const MAX_PATTERNS: usize = 1 << 16;

/// How training went, who trained, and which modules: the tensors' names tell which they are.
const IGNORED: [&str; 22] = [
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "layers_to_transform",
    "layers_pattern",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "ensure_weight_tying",
    "runtime_config",
    "monteclora_config",
    "velora_config",
];
/// Other computations than W + scale up down.
const REFUSED: [&str; 7] =
    ["modules_to_save", "trainable_token_indices", "alora_invocation_tokens", "layer_replication", "target_parameters", "arrow_config", "kasa_config"];
/// Ways to begin the training that leave the model's own weights as they are.
const PLAIN_INITS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// The settings of one part's LoRA.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    place: String,
    r: usize,
    alpha: f64,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    /// alpha / sqrt(r) in the place of alpha / r.
    rslora: bool,
}

/// The end of a module's path, in whole steps; or all of it.
#[derive(Clone, Debug, PartialEq)]
struct Pattern {
    path: String,
    whole: bool,
}

impl Pattern {
    /// A regular expression that is a path: PEFT takes any, and the tools write paths. None: it is more than that.
    fn read(text: &str) -> Option<Pattern> {
        let (text, whole) = text.strip_prefix('^').map_or((text, false), |rest| (rest, true));
        let path = text.strip_suffix('$').unwrap_or(text).replace("\\.", ".");
        let is_path = !path.is_empty() && path.chars().all(|c| c.is_alphanumeric() || "._-".contains(c));
        is_path.then_some(Pattern { path, whole })
    }

    fn matches(&self, module: &str) -> bool {
        module == self.path || (!self.whole && module.strip_suffix(&self.path).is_some_and(|rest| rest.ends_with('.')))
    }
}

impl Adapter {
    /// Fails at what is no plain LoRA, with the field that says so.
    pub fn from_config(c: &Config) -> Result<Adapter> {
        let kind = c.text("peft_type", Some("LORA"))?;
        if kind != "LORA" {
            let kind: String = kind.chars().take(80).collect();
            return Err(c.error("peft_type", format!("{kind:?}, expected \"LORA\": no other kind of adapter is supported")));
        }
        let refused = |field: &str, what: &str| c.error(field, format!("true, expected false: {what} is not supported"));
        for (field, what) in [("use_dora", "DoRA"), ("lora_bias", "LoRA with biases"), ("use_qalora", "QALoRA"), ("use_bdlora", "BD-LoRA")] {
            match c.value(field) {
                None | Some(Value::Bool(false)) => {}
                _ => return Err(refused(field, what)),
            }
        }
        if c.flag("fan_in_fan_out", false)? {
            return Err(refused("fan_in_fan_out", "a weight that is stored transposed"));
        }
        c.choice("bias", Some(()), &[("none", ())])?;
        c.value("init_lora_weights").map_or(Ok(()), |value| check_init(c, value))?;
        REFUSED.iter().try_for_each(|field| match c.value(field) {
            Some(Value::Array(items)) if items.is_empty() => Ok(()),
            Some(value) => Err(c.error(field, format!("{}, expected null: it is not supported", value.to_string().chars().take(80).collect::<String>()))),
            None => Ok(()),
        })?;
        c.ignore(&IGNORED);
        let adapter = Adapter {
            place: c.place().to_string(),
            r: c.integer("r", 8, 1..=MAX_RANK)?,
            alpha: c.number("lora_alpha", 8.0, -MAX_ALPHA..=MAX_ALPHA)?,
            ranks: patterns(c, "rank_pattern", |p, key| p.integer(key, None, 1..=MAX_RANK))?,
            alphas: patterns(c, "alpha_pattern", |p, key| p.number(key, None, -MAX_ALPHA..=MAX_ALPHA))?,
            rslora: c.flag("use_rslora", false)?,
        };
        c.finish()?;
        Ok(adapter)
    }

    /// alpha, and alpha / r or what stands in its place, for a module with factors of rank `rank`. Fails, with a fact, where the
    /// settings speak of another rank.
    pub fn scale(&self, module: &str, rank: usize) -> std::result::Result<(f64, f64), String> {
        let told = first(&self.ranks, module).unwrap_or(self.r);
        if told != rank {
            return Err(format!("{module} has rank {rank}, but r is {told} in {}", self.place));
        }
        let alpha = first(&self.alphas, module).unwrap_or(self.alpha);
        let divisor = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((alpha, alpha / divisor))
    }

    /// Whether modules differ in rank or alpha by their paths.
    pub fn has_patterns(&self) -> bool {
        !self.ranks.is_empty() || !self.alphas.is_empty()
    }
}

fn first<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.matches(module)).map(|(_, value)| *value)
}

fn check_init(c: &Config, value: &Value) -> Result<()> {
    let is_plain = value.is_boolean() || value.as_str().is_some_and(|text| PLAIN_INITS.contains(&text));
    let fact = || {
        format!(
            "{}, expected true, false or one of {PLAIN_INITS:?}: others change the model's own weights",
            value.to_string().chars().take(80).collect::<String>()
        )
    };
    if is_plain { Ok(()) } else { Err(c.error("init_lora_weights", fact())) }
}

fn patterns<T>(c: &Config, field: &str, value: impl Fn(&Config, &str) -> Result<T>) -> Result<Vec<(Pattern, T)>> {
    let Some(object) = c.object(field)? else { return Ok(Vec::new()) };
    let keys = c.object_names(field).unwrap_or_default();
    if keys.len() > MAX_PATTERNS {
        return Err(c.error(field, format!("{} rows, expected at most {MAX_PATTERNS}", keys.len())));
    }
    keys.into_iter()
        .map(|key| {
            let shown: String = key.chars().take(80).collect();
            let pattern = Pattern::read(key).ok_or_else(|| c.error(field, format!("{shown:?}, expected the path of a module or its end")))?;
            Ok((pattern, value(&object, key)?))
        })
        .collect()
}

/// The adapters in the text `lora_adapter_metadata`, whose fields begin with their part: `unet.lora_alpha`.
pub fn from_metadata(text: &str, place: &str) -> Result<Vec<(Option<LoraPart>, Adapter)>> {
    let place = format!("{place}: lora_adapter_metadata");
    // The strict reader refuses fields that stand there twice.
    Config::parse(text, &place)?;
    let fields: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let parts = LoraPart::FOLDERS.into_iter().map(Some).chain([None]);
    let part_of = |field: &str| LoraPart::FOLDERS.into_iter().find(|part| field.strip_prefix(part.name()).is_some_and(|rest| rest.starts_with('.')));
    let mut adapters = Vec::new();
    for part in parts {
        let begin = part.map_or(0, |part| part.name().len() + 1);
        let own: Map<String, Value> =
            fields.iter().filter(|(field, _)| part_of(field) == part).map(|(field, value)| (field[begin..].to_string(), value.clone())).collect();
        if !own.is_empty() {
            let place = part.map_or(place.clone(), |part| format!("{place}: {}", part.name()));
            adapters.push((part, Adapter::from_config(&Config::parse(&Value::Object(own).to_string(), &place)?)?));
        }
    }
    Ok(adapters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Adapter> {
        Adapter::from_config(&Config::parse(text, "adapter_config.json")?)
    }

    #[test]
    fn ranks_and_alphas_go_by_module() {
        let text = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {"attn1.to_q": 2, "^down.to_k$": 16},
            "alpha_pattern": {"attn1\\.to_q": 3}, "target_modules": ["to_q"], "modules_to_save": null, "init_lora_weights": "gaussian"}"#;
        let adapter = read(text).unwrap();
        assert_eq!(adapter.scale("down.attn1.to_q", 2), Ok((3.0, 1.5)));
        assert_eq!(adapter.scale("down.myattn1.to_q", 4), Ok((8.0, 2.0)));
        assert_eq!(adapter.scale("down.to_k", 16), Ok((8.0, 0.5)));
        assert_eq!(adapter.scale("x.down.to_k", 4), Ok((8.0, 2.0)));
        assert_eq!(adapter.scale("x", 5), Err("x has rank 5, but r is 4 in adapter_config.json".to_string()));
        assert_eq!(read(r#"{"r": 16, "lora_alpha": 8, "use_rslora": true}"#).unwrap().scale("x", 16), Ok((8.0, 2.0)));
    }

    #[test]
    fn what_is_no_plain_lora_is_named() {
        let rows = [
            (r#"{"use_dora": true}"#, "adapter_config.json: use_dora: true, expected false: DoRA is not supported"),
            (r#"{"peft_type": "LOHA"}"#, "adapter_config.json: peft_type: \"LOHA\", expected \"LORA\""),
            (r#"{"fan_in_fan_out": true}"#, "adapter_config.json: fan_in_fan_out: true, expected false"),
            (r#"{"lora_bias": true}"#, "adapter_config.json: lora_bias: true, expected false: LoRA with biases"),
            (r#"{"bias": "all"}"#, "adapter_config.json: bias: \"all\", expected \"none\""),
            (r#"{"init_lora_weights": "pissa_niter_4"}"#, "adapter_config.json: init_lora_weights: \"pissa_niter_4\", expected true"),
            (r#"{"modules_to_save": ["conv_out"]}"#, "adapter_config.json: modules_to_save: [\"conv_out\"], expected null"),
            (r#"{"rank_pattern": {"to_[qk]": 4}}"#, "adapter_config.json: rank_pattern: \"to_[qk]\", expected the path of a module"),
            (r#"{"rank_pattern": {"to_q": 0}}"#, "adapter_config.json: rank_pattern: to_q: 0, expected an integer from 1"),
            (r#"{"r": 0}"#, "adapter_config.json: r: 0, expected an integer from 1 to 65536"),
            (r#"{"lora_alfa": 3}"#, "adapter_config.json: unknown or unsupported field `lora_alfa`"),
        ];
        for (text, want) in rows {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{text}: {error}");
        }
    }

    #[test]
    fn one_text_holds_the_parts() {
        let text = r#"{"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.r": 8, "text_encoder_2.r": 16}"#;
        let adapters = from_metadata(text, "f").unwrap();
        let told: Vec<(Option<LoraPart>, usize)> = adapters.iter().map(|(part, adapter)| (*part, adapter.r)).collect();
        assert_eq!(told, [(Some(LoraPart::Unet), 4), (Some(LoraPart::TextEncoder), 8), (Some(LoraPart::TextEncoder2), 16)]);
        assert_eq!(from_metadata(r#"{"r": 3}"#, "f").unwrap()[0].0, None);
        let error = from_metadata(r#"{"unet.use_dora": true}"#, "f").unwrap_err().to_string();
        assert!(error.starts_with("f: lora_adapter_metadata: unet: use_dora: true"), "{error}");
        assert!(from_metadata(r#"{"r": 3, "r": 4}"#, "f").unwrap_err().to_string().contains("twice"));
    }
}
