//! CLIP's text encoder: transformers `CLIPTextModel` and `CLIPTextModelWithProjection`, as Stable Diffusion 1 (OpenAI's),
//! 2 (OpenCLIP's) and XL (one of each) have them.
//! Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021);
//! `transformers/models/clip/modeling_clip.py`.

use serde_json::{Value, json};

use crate::base::{Array, DType, Error, Kind, Result, Shape};
use crate::models::model::{Architecture, Checkpoint, Component, Inputs, Model, Output, Port};
use crate::nn::{LayerNorm, Linear};
use crate::ops::activation::Function;
use crate::ops::reduce::Reduction;
use crate::plan::{Layout, Tape, Tensor, Weight};
use crate::weights::{Config, Scope};

/// The component's input.
pub const INPUT_IDS: &str = "input_ids";
/// The last layer's result behind the final norm.
pub const LAST_HIDDEN_STATE: &str = "last_hidden_state";
/// The result of the layer before the last, without the final norm: Stable Diffusion XL's tokens.
pub const PENULTIMATE_HIDDEN_STATE: &str = "penultimate_hidden_state";
pub const TEXT_EMBEDS: &str = "text_embeds";

/// Added to the scores of later tokens: their weights are zero, and no sum overflows.
const MASKED: f32 = -1e30;
/// The `eos_token_id` of configurations from before transformers 4.31. The end of a text is its largest number then.
const OLD_EOS: usize = 2;
/// Sizes that a hostile file may claim.
const MOST_TOKENS: usize = 1 << 20;
const MOST_CHANNELS: usize = 16_384;
const MOST_LAYERS: usize = 256;
const MOST_POSITIONS: usize = 4096;

/// Fields that transformers writes for every model, and that have no say in a forward pass.
const OTHERS: &str = "\
    add_cross_attention architectures attention_dropout bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward \
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype early_stopping encoder_no_repeat_ngram_size \
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label initializer_factor initializer_range is_decoder \
    is_encoder_decoder label2id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences \
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty \
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder \
    tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 model_type";

pub static ARCHITECTURE: Architecture = Architecture {
    name: "transformers CLIPTextModel",
    is_config: |c| c.has("model_type") && c.text("model_type", None).is_ok_and(|found| found == "clip_text_model"),
    is_tensors: |_| false,
    is_path: |_| false,
    load: |checkpoint| Ok(Box::new(ClipText::load(checkpoint)?)),
};

/// `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipTextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Tokens of the longest text.
    pub max_position_embeddings: usize,
    pub hidden_act: Function,
    pub layer_norm_eps: f32,
    /// Width of `text_embeds`, where the model is one with a projection.
    pub projection_dim: usize,
    pub eos_token_id: usize,
    pub with_projection: bool,
}

impl ClipTextConfig {
    /// Takes every field of `config` and finishes it. Unknown fields and values are errors that name them.
    pub fn from_config(c: &Config) -> Result<ClipTextConfig> {
        c.require("model_type", "clip_text_model")?;
        let classes = c.texts("architectures", 4)?.unwrap_or_default();
        let known = ["CLIPTextModel", "CLIPTextModelWithProjection"];
        if let Some(other) = classes.iter().find(|class| !known.contains(&class.as_str())) {
            return Err(c.error("architectures", format!("{other:?}, expected one of {known:?}")));
        }
        let acts = [("quick_gelu", Function::QuickGelu), ("gelu", Function::Gelu), ("gelu_new", Function::GeluTanh), ("gelu_pytorch_tanh", Function::GeluTanh)];
        let config = ClipTextConfig {
            vocab_size: c.integer("vocab_size", 49_408, 1..=MOST_TOKENS)?,
            hidden_size: c.integer("hidden_size", 512, 1..=MOST_CHANNELS)?,
            intermediate_size: c.integer("intermediate_size", 2048, 1..=4 * MOST_CHANNELS)?,
            num_hidden_layers: c.integer("num_hidden_layers", 12, 1..=MOST_LAYERS)?,
            num_attention_heads: c.integer("num_attention_heads", 8, 1..=MOST_CHANNELS)?,
            max_position_embeddings: c.integer("max_position_embeddings", 77, 1..=MOST_POSITIONS)?,
            hidden_act: c.choice("hidden_act", Some(Function::QuickGelu), &acts)?,
            layer_norm_eps: c.number("layer_norm_eps", 1e-5, 0.0..=1.0)? as f32,
            projection_dim: c.integer("projection_dim", 512, 1..=MOST_CHANNELS)?,
            eos_token_id: c.integer("eos_token_id", 49_407, 0..=MOST_TOKENS)?,
            with_projection: classes.iter().any(|class| class == known[1]),
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let fact = format!("{}, expected a divisor of hidden_size, {}", config.num_attention_heads, config.hidden_size);
            return Err(c.error("num_attention_heads", fact));
        }
        c.ignore(&OTHERS.split_whitespace().collect::<Vec<_>>());
        c.finish()?;
        Ok(config)
    }
}

/// x + self_attn(layer_norm1(x)), then x + mlp(layer_norm2(x)). A token sees itself and those before it.
struct Layer {
    name: String,
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    act: Function,
}

impl Layer {
    fn load(scope: &Scope, c: &ClipTextConfig) -> Layer {
        let width = c.hidden_size;
        let norm = |name: &str| LayerNorm::load(&scope.child(name), width, c.layer_norm_eps);
        let (attention, mlp) = (scope.child("self_attn"), scope.child("mlp"));
        let projection = |name: &str| Linear::load(&attention.child(name), width, width);
        Layer {
            name: scope.name().to_string(),
            layer_norm1: norm("layer_norm1"),
            q_proj: projection("q_proj"),
            k_proj: projection("k_proj"),
            v_proj: projection("v_proj"),
            out_proj: projection("out_proj"),
            heads: c.num_attention_heads,
            layer_norm2: norm("layer_norm2"),
            fc1: Linear::load(&mlp.child("fc1"), width, c.intermediate_size),
            fc2: Linear::load(&mlp.child("fc2"), c.intermediate_size, width),
            act: c.hidden_act,
        }
    }

    /// x: `[N, L, D]`; mask: `[1, 1, L, L]`.
    fn forward(&self, t: &mut Tape, x: Tensor, mask: Tensor) -> Result<Tensor> {
        t.scope(&self.name, |t| {
            let h = self.layer_norm1.forward(t, x)?;
            let h = t.scope("self_attn", |t| {
                let (q, k, v) = (self.q_proj.forward(t, h)?, self.k_proj.forward(t, h)?, self.v_proj.forward(t, h)?);
                let h = t.attention_with_bias(q, k, v, mask, self.heads)?;
                self.out_proj.forward(t, h)
            })?;
            let x = t.add(x, h)?;
            let h = self.layer_norm2.forward(t, x)?;
            let h = t.scope("mlp", |t| {
                let h = self.fc1.forward(t, h)?;
                let h = t.activation(h, self.act)?;
                self.fc2.forward(t, h)
            })?;
            t.add(x, h)
        })
    }
}

/// What a text encoder makes of a batch of texts.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    /// `[N, L, D]`.
    pub last_hidden_state: Tensor,
    /// `[N, L, D]`.
    pub penultimate_hidden_state: Tensor,
    /// `[N, D]`.
    pub pooler_output: Tensor,
    /// `[N, projection_dim]`.
    pub text_embeds: Option<Tensor>,
}

/// The model and its weights.
pub struct ClipText {
    pub config: ClipTextConfig,
    parameters: u64,
    dropped: Vec<String>,
    /// `text_model`, or empty: what the modules stand in.
    prefix: String,
    /// `[V, D]`; more rows than `vocab_size` where tokens were added.
    token_embedding: Weight,
    /// `[P, D]`.
    position_embedding: Weight,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

impl ClipText {
    /// Reads the configuration and the weights of a folder.
    pub fn load(checkpoint: &Checkpoint) -> Result<ClipText> {
        let config = ClipTextConfig::from_config(checkpoint.config()?)?;
        Self::from_scope(&checkpoint.scope("text encoder")?, config)
    }

    /// Loads the weights of `scope` and closes its account. transformers 4 puts all but the projection in `text_model`,
    /// transformers 5 does so in the model with a projection only.
    pub fn from_scope(scope: &Scope, config: ClipTextConfig) -> Result<ClipText> {
        let c = &config;
        let bare = scope.has("embeddings.token_embedding.weight");
        let prefix = if bare { "" } else { "text_model" };
        let inner = if bare { scope.clone() } else { scope.child(prefix) };
        let embeddings = inner.child("embeddings");
        embeddings.dropping("position_ids");
        let table = |name: &str, rows| embeddings.child(name).weight("weight", &[rows, c.hidden_size], Layout::Plain);
        let has_projection = c.with_projection || scope.has("text_projection.weight");
        let mut model = ClipText {
            prefix: prefix.to_string(),
            token_embedding: table("token_embedding", c.vocab_size),
            position_embedding: table("position_embedding", c.max_position_embeddings),
            layers: (0..c.num_hidden_layers).map(|i| Layer::load(&inner.child(&format!("encoder.layers.{i}")), c)).collect(),
            final_layer_norm: LayerNorm::load(&inner.child("final_layer_norm"), c.hidden_size, c.layer_norm_eps),
            text_projection: has_projection.then(|| Linear::without_bias(&scope.child("text_projection"), c.hidden_size, c.projection_dim)),
            parameters: 0,
            dropped: Vec::new(),
            config,
        };
        let account = scope.finish()?;
        (model.parameters, model.dropped) = (account.parameters, account.dropped);
        Ok(model)
    }

    /// Rows of the table of tokens.
    pub fn tokens(&self) -> usize {
        self.token_embedding.dims()[0]
    }

    /// Gives tokens their embeddings: a number within the table is replaced, the next after it is added.
    /// Fails at other numbers and widths.
    pub fn set_tokens(&mut self, rows: &[(usize, &[f32])]) -> Result<()> {
        let width = self.config.hidden_size;
        let mut values = self.token_embedding.array.values().into_owned();
        for (id, row) in rows {
            if row.len() != width {
                let fact = format!("an embedding of {} numbers, expected {width} as the text encoder has", row.len());
                return Err(Error::new(Kind::Weights, "textual inversion", fact));
            }
            let at = id * width;
            if at > values.len() {
                let fact = format!("{id}, expected at most {}: the text encoder's next", values.len() / width);
                return Err(Error::new(Kind::Weights, "number of a new token", fact));
            }
            values.resize(values.len().max(at + width), 0.0);
            values[at..at + width].copy_from_slice(row);
        }
        let shape = Shape::new(&[values.len() / width, width]);
        self.token_embedding = Weight::new(&self.token_embedding.name, Array { shape, data: values });
        Ok(())
    }

    /// input_ids: u32 `[N, L]`, L at most `max_position_embeddings`.
    pub fn forward(&self, t: &mut Tape, input_ids: Tensor) -> Result<Encoded> {
        let (c, shape) = (&self.config, t.shape(input_ids).clone());
        let &[batch, length] = shape.dims() else { return Err(t.mismatch(format!("input_ids are {shape}, expected [N, L]"))) };
        if batch == 0 || !(1..=c.max_position_embeddings).contains(&length) || t.dtype(input_ids) != DType::U32 {
            let fact = format!("input_ids are {shape} {:?}, expected U32 [N, L] with L from 1 to {}", t.dtype(input_ids), c.max_position_embeddings);
            return Err(t.mismatch(fact));
        }
        let mut hidden = Vec::new();
        let mut record = |t: &mut Tape| {
            let mask = causal_mask(t, length);
            let mut x = self.embed(t, input_ids, [batch, length])?;
            hidden.push(x);
            for layer in &self.layers {
                x = layer.forward(t, x, mask)?;
                hidden.push(x);
            }
            self.final_layer_norm.forward(t, x)
        };
        let last = if self.prefix.is_empty() { record(t) } else { t.scope(&self.prefix, record) }?;
        let pooled = t.within("pooler", |t| self.pool(t, input_ids, last))?;
        let text_embeds = self.text_projection.as_ref().map(|layer| layer.forward(t, pooled)).transpose()?;
        Ok(Encoded { last_hidden_state: last, penultimate_hidden_state: hidden[hidden.len() - 2], pooler_output: pooled, text_embeds })
    }

    fn embed(&self, t: &mut Tape, input_ids: Tensor, [batch, length]: [usize; 2]) -> Result<Tensor> {
        let width = self.config.hidden_size;
        t.scope("embeddings", |t| {
            let tokens = t.scope("token_embedding", |t| {
                let table = t.weight(&self.token_embedding);
                let ids = t.reshape(input_ids, &[batch * length])?;
                let rows = t.embedding(table, ids)?;
                t.reshape(rows, &[batch, length, width])
            })?;
            let table = t.weight(&self.position_embedding);
            let positions = if length == self.config.max_position_embeddings { table } else { t.slice(table, 0, 0, length)? };
            t.add(tokens, positions)
        })
    }

    /// Each text's row of `hidden` `[N, L, D]` at its end, `[N, D]`: the first token `eos_token_id`, or the first with the
    /// largest number where the configuration is an old one; the first of all where there is none.
    ///
    /// Of a score s per token, top(l) is 1 where s is the largest, and 1 at its first place only once what comes after
    /// the first is taken away; all of these are whole numbers, and the product with `hidden` picks a row.
    fn pool(&self, t: &mut Tape, input_ids: Tensor, hidden: Tensor) -> Result<Tensor> {
        let &[batch, length, width] = t.shape(hidden).dims() else { return Err(t.mismatch("hidden states of three axes are expected".to_string())) };
        let eos = self.config.eos_token_id;
        let score = |id: usize| if eos == OLD_EOS { id as f32 } else { f32::from(id == eos) };
        let scores = constant("scores", &[self.tokens(), 1], (0..self.tokens()).map(score).collect());
        let until = constant("until", &[length, length], (0..length * length).map(|i| f32::from(i / length <= i % length)).collect());
        let (scores, until) = (t.weight(&scores), t.weight(&until));
        let ids = t.reshape(input_ids, &[batch * length])?;
        let scores = t.embedding(scores, ids)?;
        let scores = t.reshape(scores, &[batch, length])?;
        let largest = t.reduce(scores, 1, Reduction::Max)?;
        let largest = t.reshape(largest, &[batch, 1])?;
        let below = t.sub(scores, largest)?;
        let top = t.activation(below, Function::Clamp { low: -1.0, high: 0.0 })?;
        let top = t.affine(top, 1.0, 1.0)?;
        let counted = t.linear(top, until, None)?;
        let first = t.affine(counted, -1.0, 2.0)?;
        let first = t.activation(first, Function::Relu)?;
        let first = t.mul(top, first)?;
        let first = t.reshape(first, &[batch, 1, length])?;
        let rows = t.matmul(first, hidden)?;
        t.reshape(rows, &[batch, width])
    }
}

/// `[1, 1, L, L]`: 0 for a key that is not behind the query.
fn causal_mask(t: &mut Tape, length: usize) -> Tensor {
    let values = (0..length * length).map(|i| if i % length <= i / length { 0.0 } else { MASKED }).collect();
    t.weight(&constant("causal_mask", &[1, 1, length, length], values))
}

fn constant(name: &str, shape: &[usize], data: Vec<f32>) -> Weight {
    Weight::new(name, Array { shape: Shape::new(shape), data })
}

impl Model for ClipText {
    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn dropped(&self) -> &[String] {
        &self.dropped
    }

    fn facts(&self) -> Vec<(&'static str, Value)> {
        let c = &self.config;
        vec![
            ("vocab_size", json!(c.vocab_size)),
            ("hidden_size", json!(c.hidden_size)),
            ("num_hidden_layers", json!(c.num_hidden_layers)),
            ("num_attention_heads", json!(c.num_attention_heads)),
            ("max_position_embeddings", json!(c.max_position_embeddings)),
            ("hidden_act", json!(format!("{:?}", c.hidden_act))),
            ("eos_token_id", json!(c.eos_token_id)),
            ("projection_dim", json!(self.text_projection.as_ref().map(|_| c.projection_dim))),
        ]
    }

    fn components(&self) -> Vec<Component> {
        vec![Component::TextEncoder]
    }

    fn ports(&self, _: Component, batch: usize) -> Vec<Port> {
        vec![Port::indices(INPUT_IDS, &[batch, self.config.max_position_embeddings], self.tokens())]
    }

    fn record(&self, t: &mut Tape, _: Component, inputs: &Inputs) -> Result<Vec<Output>> {
        let encoded = self.forward(t, inputs.get(INPUT_IDS)?)?;
        let mut outputs = vec![
            Output::plain(LAST_HIDDEN_STATE, encoded.last_hidden_state),
            Output::plain(PENULTIMATE_HIDDEN_STATE, encoded.penultimate_hidden_state),
            Output::plain("pooler_output", encoded.pooler_output),
        ];
        outputs.extend(encoded.text_embeds.map(|embeds| Output::plain(TEXT_EMBEDS, embeds)));
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<ClipTextConfig> {
        ClipTextConfig::from_config(&Config::parse(&format!("{{\"model_type\": \"clip_text_model\"{fields}}}"), "config.json").unwrap())
    }

    #[test]
    fn defaults_are_transformers_own() {
        let c = parse("").unwrap();
        assert_eq!((c.vocab_size, c.hidden_size, c.num_hidden_layers, c.eos_token_id, c.with_projection), (49_408, 512, 12, 49_407, false));
        assert_eq!((c.hidden_act, c.layer_norm_eps), (Function::QuickGelu, 1e-5));
        assert!(parse(r#", "architectures": ["CLIPTextModelWithProjection"], "torch_dtype": "float16", "dropout": 0.0"#).unwrap().with_projection);
    }

    #[test]
    fn wrong_values_are_named() {
        let rows = [
            (r#", "hidden_act": "swish""#, "hidden_act: \"swish\", expected one of \"quick_gelu\""),
            (r#", "num_attention_heads": 7"#, "num_attention_heads: 7, expected a divisor of hidden_size, 512"),
            (r#", "vocab_size": 4294967296"#, "vocab_size: 4294967296"),
            (r#", "num_hidden_layers": 0"#, "num_hidden_layers: 0"),
            (r#", "max_position_embeddings": 1000000"#, "max_position_embeddings: 1000000"),
            (r#", "eos_token_id": [1, 2]"#, "eos_token_id: [1,2]"),
            (r#", "architectures": ["CLIPModel"]"#, "architectures: \"CLIPModel\", expected one of"),
            (r#", "rope_theta": 1"#, "unknown or unsupported field `rope_theta`"),
        ];
        for (fields, want) in rows {
            let error = parse(fields).unwrap_err();
            assert!(error.to_string().contains(want) && error.kind() == Kind::Config, "{error}");
        }
    }
}
