//! What tensors of LoRA files are called: which factor of which module of which model a name means.
//! Source: `diffusers/utils/state_dict_utils.py`, `diffusers/loaders/lora_conversion_utils.py`, `peft/utils/save_and_load.py`;
//! kohya-ss/sd-scripts `networks/lora.py`, whose names are a model's own with `_` for each dot.

/// The model that a LoRA changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoraPart {
    Unet,
    TextEncoder,
    TextEncoder2,
    /// Any other single model.
    Other,
}

impl LoraPart {
    /// Those that have a folder of their own in a diffusers model.
    pub const FOLDERS: [LoraPart; 3] = [LoraPart::Unet, LoraPart::TextEncoder, LoraPart::TextEncoder2];

    /// The name of the folder, and of the part in reports.
    pub fn name(self) -> &'static str {
        match self {
            LoraPart::Unet => "unet",
            LoraPart::TextEncoder => "text_encoder",
            LoraPart::TextEncoder2 => "text_encoder_2",
            LoraPart::Other => "model",
        }
    }
}

/// W + scale up down, and what scale is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Down,
    Up,
    Alpha,
}

/// Whose names they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Convention {
    /// `lora_A`, `lora_B`: PEFT, and diffusers since 0.26.
    Peft,
    /// `lora.down`, `lora.up`, `lora_linear_layer`: diffusers before that.
    Diffusers,
    /// `processor.to_q_lora.down`: diffusers before 0.20.
    Processors,
    /// `lora_unet_..._to_q.lora_down`.
    Kohya,
    /// The same with the blocks' names of the latent diffusion code: `lora_unet_input_blocks_1_1_...`.
    KohyaLdm,
}

impl Convention {
    pub fn words(self) -> &'static str {
        match self {
            Convention::Peft => "PEFT names (lora_A, lora_B)",
            Convention::Diffusers => "diffusers' old names (lora.down, lora.up)",
            Convention::Processors => "diffusers' attention processors (to_q_lora.down)",
            Convention::Kohya => "kohya's names (lora_down, lora_up)",
            Convention::KohyaLdm => "kohya's names with LDM blocks (input_blocks)",
        }
    }
}

/// The module that a tensor belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// None: the name does not tell. It is the UNet's where there is one.
    pub part: Option<LoraPart>,
    /// Below the part; with dots, or with `_` for each of them.
    pub module: String,
    /// Whether dots are `_`.
    pub flat: bool,
}

/// What one tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub place: Place,
    pub role: Role,
    pub convention: Convention,
}

/// Ends of names. What stands before one is a module.
const ENDS: [(&str, Role, Convention); 10] = [
    (".lora_A.weight", Role::Down, Convention::Peft),
    (".lora_B.weight", Role::Up, Convention::Peft),
    (".lora.down.weight", Role::Down, Convention::Diffusers),
    (".lora.up.weight", Role::Up, Convention::Diffusers),
    (".lora_linear_layer.down.weight", Role::Down, Convention::Diffusers),
    (".lora_linear_layer.up.weight", Role::Up, Convention::Diffusers),
    ("_lora.down.weight", Role::Down, Convention::Processors),
    ("_lora.up.weight", Role::Up, Convention::Processors),
    (".lora_down.weight", Role::Down, Convention::Kohya),
    (".lora_up.weight", Role::Up, Convention::Kohya),
];
const ALPHA: &str = ".alpha";
/// What may stand between a module and its alpha.
const BEFORE_ALPHA: [&str; 3] = [".lora_linear_layer", ".lora", "_lora"];

/// Begins of names with their models; the flag: dots are `_`.
const PARTS: [(&str, LoraPart, bool); 7] = [
    ("lora_unet_", LoraPart::Unet, true),
    ("lora_te_", LoraPart::TextEncoder, true),
    ("lora_te1_", LoraPart::TextEncoder, true),
    ("lora_te2_", LoraPart::TextEncoder2, true),
    ("unet.", LoraPart::Unet, false),
    ("text_encoder.", LoraPart::TextEncoder, false),
    ("text_encoder_2.", LoraPart::TextEncoder2, false),
];
/// What PEFT puts before the names of the model that it wraps.
pub const WRAPPED: &str = "base_model.model.";
/// Blocks of the latent diffusion code.
const LDM: [&str; 7] = ["input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_0", "out_2"];

/// Steps of names that mean another kind of change, or the begin of such a step (`hada_w1_a`), and its name.
const OTHERS: [(&str, &str); 21] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_mid", "LoRA of three factors (Tucker)"),
    ("on_input", "(IA)3"),
    ("ia3_", "(IA)3"),
    ("oft_", "OFT"),
    ("boft_", "BOFT"),
    ("vera_", "VeRA"),
    ("a1", "GLoRA"),
    ("a2", "GLoRA"),
    ("b1", "GLoRA"),
    ("b2", "GLoRA"),
    ("diff", "a full difference of weights"),
    ("diff_b", "a difference of biases"),
    ("w_norm", "a change of a norm"),
    ("b_norm", "a change of a norm"),
    ("lora_embedding_", "LoRA of an embedding"),
    ("string_to_param", "a textual inversion within the file"),
    ("base_layer", "a model that holds its LoRA unmerged"),
];

/// The kind of change that a name means where it is none of ours.
pub fn other_kind(name: &str) -> Option<&'static str> {
    if name.ends_with(".lora_B.bias") || name.ends_with(".lora_up.bias") {
        return Some("LoRA with biases");
    }
    let is = |step: &str, told: &str| if told.ends_with('_') { step.starts_with(told) } else { step == told };
    // The first step may be a module's name in kohya's writing, and anything.
    name.split('.').skip(1).find_map(|step| OTHERS.iter().find(|(told, _)| is(step, told)).map(|(_, kind)| *kind))
}

/// Whether a name can only be a LoRA's, or one of its relatives'.
pub fn is_telling(name: &str) -> bool {
    let ours = parse(name).is_some_and(|name| name.role != Role::Alpha);
    let other = other_kind(name).is_some_and(|kind| ["DoRA", "LoHa", "LoKr", "LoRA", "OFT"].iter().any(|begin| kind.starts_with(begin)));
    ours || other
}

/// What a tensor is; None: it is no factor of a LoRA.
pub fn parse(name: &str) -> Option<Name> {
    let (module, role, convention) = end(name)?;
    let (part, module, flat) = begin(module);
    let module = if flat { module.to_string() } else { unprocessed(module, convention == Convention::Processors) };
    let is_ldm = flat && part == Some(LoraPart::Unet) && LDM.iter().any(|block| module.starts_with(block));
    let convention = if convention == Convention::Kohya && is_ldm { Convention::KohyaLdm } else { convention };
    (!module.is_empty()).then_some(Name { place: Place { part, module, flat }, role, convention })
}

fn end(name: &str) -> Option<(&str, Role, Convention)> {
    if let Some(module) = name.strip_suffix(ALPHA) {
        let found = BEFORE_ALPHA.iter().find_map(|end| Some((module.strip_suffix(end)?, *end)));
        return Some(match found {
            Some((module, "_lora")) => (module, Role::Alpha, Convention::Processors),
            Some((module, _)) => (module, Role::Alpha, Convention::Diffusers),
            None => (module, Role::Alpha, Convention::Kohya),
        });
    }
    let plain = ENDS.iter().find_map(|&(end, role, convention)| Some((name.strip_suffix(end)?, role, convention)));
    plain.or_else(|| {
        // With the adapter's name: `lora_A.default.weight`.
        let (module, adapter) = name.strip_suffix(".weight")?.rsplit_once('.')?;
        let factor = [(".lora_A", Role::Down), (".lora_B", Role::Up)];
        let found = factor.iter().find_map(|(end, role)| Some((module.strip_suffix(end)?, *role, Convention::Peft)));
        found.filter(|_| !adapter.is_empty())
    })
}

fn begin(name: &str) -> (Option<LoraPart>, &str, bool) {
    let unwrapped = |name| str::strip_prefix(name, WRAPPED).unwrap_or(name);
    let name = unwrapped(name);
    let found = PARTS.iter().find_map(|&(begin, part, flat)| Some((Some(part), unwrapped(name.strip_prefix(begin)?), flat)));
    // Dots in spite of kohya's begin: somebody else's names, which no module will answer to.
    found.filter(|(_, module, flat)| !flat || !module.contains('.')).unwrap_or((None, name, false))
}

/// The module whose linear layer an attention processor's changes. Text encoders' layers have other names.
fn unprocessed(module: &str, is_processor: bool) -> String {
    let module = module.replace(".processor.", ".");
    let Some((attention, layer)) = module.rsplit_once('.').filter(|_| is_processor) else { return module };
    let is_text = attention.ends_with("self_attn");
    let layer = match (layer, is_text) {
        ("to_out", false) => "to_out.0",
        ("to_q", true) => "q_proj",
        ("to_k", true) => "k_proj",
        ("to_v", true) => "v_proj",
        ("to_out", true) => "out_proj",
        _ => layer,
    };
    format!("{attention}.{layer}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> (Option<LoraPart>, String, Role, Convention) {
        let Name { place, role, convention } = parse(name).unwrap_or_else(|| panic!("{name}"));
        (place.part, place.module, role, convention)
    }

    #[test]
    fn every_convention_is_read() {
        use Convention::*;
        use LoraPart::*;
        use Role::*;
        let q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
        let rows: Vec<(String, Option<LoraPart>, &str, Role, Convention)> = vec![
            (format!("unet.{q}.lora_A.weight"), Some(Unet), q, Down, Peft),
            (format!("unet.{q}.lora_B.default.weight"), Some(Unet), q, Up, Peft),
            (format!("{q}.lora_B.weight"), None, q, Up, Peft),
            (format!("base_model.model.{q}.lora_A.weight"), None, q, Down, Peft),
            (format!("unet.base_model.model.{q}.lora_A.weight"), Some(Unet), q, Down, Peft),
            (format!("unet.{q}.lora.down.weight"), Some(Unet), q, Down, Diffusers),
            (format!("unet.{q}.lora.alpha"), Some(Unet), q, Alpha, Diffusers),
            ("unet.mid_block.attn1.processor.to_out_lora.up.weight".to_string(), Some(Unet), "mid_block.attn1.to_out.0", Up, Processors),
            ("mid_block.attn1.processor.to_v_lora.down.weight".to_string(), None, "mid_block.attn1.to_v", Down, Processors),
            ("unet.mid_block.attn1.processor.to_out_lora.alpha".to_string(), Some(Unet), "mid_block.attn1.to_out.0", Alpha, Processors),
            ("text_encoder.layers.0.self_attn.to_out_lora.up.weight".to_string(), Some(TextEncoder), "layers.0.self_attn.out_proj", Up, Processors),
            (
                "text_encoder_2.layers.0.self_attn.q_proj.lora_linear_layer.down.weight".to_string(),
                Some(TextEncoder2),
                "layers.0.self_attn.q_proj",
                Down,
                Diffusers,
            ),
            ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight".to_string(), Some(Unet), "mid_block_attentions_0_proj_in", Down, Kohya),
            ("lora_unet_input_blocks_1_1_proj_in.lora_up.weight".to_string(), Some(Unet), "input_blocks_1_1_proj_in", Up, KohyaLdm),
            ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha".to_string(), Some(TextEncoder), "text_model_encoder_layers_0_mlp_fc1", Alpha, Kohya),
            ("lora_te1_x.alpha".to_string(), Some(TextEncoder), "x", Alpha, Kohya),
            ("lora_te2_x.lora_up.weight".to_string(), Some(TextEncoder2), "x", Up, Kohya),
        ];
        for (name, part, module, role, convention) in rows {
            assert_eq!(row(&name), (part, module.to_string(), role, convention), "{name}");
        }
        for name in ["conv_in.weight", "lora_unet_x.lora_mid.weight", "x.lora_A..weight", ".lora_A.weight", "unet.lora_down.weight", ".alpha"] {
            assert!(parse(name).is_none_or(|name| name.place.part.is_none()), "{name}");
        }
    }

    #[test]
    fn other_kinds_have_names() {
        let rows = [
            ("lora_unet_x.dora_scale", "DoRA"),
            ("unet.x.lora_magnitude_vector.weight", "DoRA"),
            ("unet.x.lora_magnitude_vector", "DoRA"),
            ("lora_unet_x.hada_w1_a", "LoHa"),
            ("x.lokr_w2.default", "LoKr"),
            ("lora_unet_x.lora_mid.weight", "LoRA of three factors (Tucker)"),
            ("lora_unet_x.on_input", "(IA)3"),
            ("base_model.model.x.ia3_l", "(IA)3"),
            ("lora_unet_x.oft_blocks", "OFT"),
            ("lora_unet_x.diff", "a full difference of weights"),
            ("lora_unet_x.diff_b", "a difference of biases"),
            ("lora_unet_x.w_norm", "a change of a norm"),
            ("x.lora_embedding_A", "LoRA of an embedding"),
            ("x.lora_B.bias", "LoRA with biases"),
        ];
        for (name, kind) in rows {
            assert_eq!(other_kind(name), Some(kind), "{name}");
        }
        assert_eq!(other_kind("diff.x.lora_A.weight"), None);
        assert!(is_telling("x.lora_A.weight") && is_telling("lora_unet_x.hada_w1_a") && is_telling("lora_unet_x.dora_scale"));
        assert!(!is_telling("x.alpha") && !is_telling("layer1.b1.weight") && !is_telling("conv1.weight") && !is_telling("b.diff"));
    }
}
