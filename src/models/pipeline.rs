//! Stable Diffusion's pipelines as diffusers saves them: a folder with `model_index.json`, whose classes are prompts or
//! learned class tokens that the user gives.
//! Source: `diffusers/pipelines/stable_diffusion*/pipeline_*.py`, `encode_prompt`.

use std::path::{Path, PathBuf};

use crate::base::{Array, DType, Error, Kind, Result};
use crate::models::class_tokens;
use crate::models::clip_text::{ClipText, INPUT_IDS};
use crate::models::inpaint_index::InpaintIndex;
use crate::models::inpaint_model::{Condition, InpaintModel, load_part};
use crate::models::lora::Lora;
use crate::models::model::{Checkpoint, Component, Loras};
use crate::models::recognise::recognise;
use crate::models::textual_inversion::{Inversion, Learned};
use crate::models::tokenizer::Tokenizer;
use crate::plan::{Session, Tape, Weight};
use crate::weights::Config;

/// Gives a plan a device. The caller knows which.
pub type Prepare<'a> = dyn FnMut(Tape) -> Result<Box<dyn Session>> + 'a;

/// `_class_name` of the pipelines, and how many text encoders they have.
const CLASSES: [(&str, usize); 4] =
    [("StableDiffusionInpaintPipeline", 1), ("StableDiffusionPipeline", 1), ("StableDiffusionXLInpaintPipeline", 2), ("StableDiffusionXLPipeline", 2)];
/// Folders of text encoders and of their tokenizers.
const ENCODERS: [[&str; 2]; 2] = [["text_encoder", "tokenizer"], ["text_encoder_2", "tokenizer_2"]];
/// Parts that an inpainting by prompts does without.
const IGNORED: [&str; 3] = ["safety_checker", "feature_extractor", "image_encoder"];
const TEXT_EMBEDS: &str = "text_embeds";
const TIME_IDS: &str = "time_ids";

/// A pipeline, ready to paint.
pub struct Pipeline {
    pub model: InpaintModel,
    /// What the user should know: parts and words that are not used, prompts that are cut off.
    pub notes: Vec<String>,
}

/// What a pipeline's classes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// Name and prompt of each class, in the order of their labels.
    pub prompts: Vec<(String, String)>,
    /// The null class's prompt. None: the empty one, or zeros where the pipeline says so.
    pub negative_prompt: Option<String>,
    pub textual_inversions: Vec<Inversion>,
    /// A file with learned tokens of each class, in the place of prompts.
    pub class_tokens: Option<PathBuf>,
}

/// `model_index.json` of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineIndex {
    place: String,
    pub class: String,
    /// Text encoders.
    pub encoders: usize,
    /// Library and class, as the index has it.
    pub scheduler: Vec<String>,
    /// Without a negative prompt the null class is zeros.
    pub force_zeros: bool,
    /// Parts that are there and are not used.
    pub ignored: Vec<String>,
}

impl PipelineIndex {
    /// Whether a class of `model_index.json` is one of these pipelines.
    pub fn is_class(class: &str) -> bool {
        CLASSES.iter().any(|(name, _)| *name == class)
    }

    /// Reads the index of a folder. Fails at another pipeline, at parts that are others than it has, and at unknown fields.
    pub fn read(folder: &Path) -> Result<PipelineIndex> {
        Self::from_config(&Config::read(&folder.join("model_index.json"))?)
    }

    fn from_config(c: &Config) -> Result<PipelineIndex> {
        let class = c.text("_class_name", None)?;
        let Some((_, encoders)) = CLASSES.iter().find(|(name, _)| *name == class) else {
            let known: Vec<&str> = CLASSES.iter().map(|(name, _)| *name).chain([InpaintIndex::CLASS]).collect();
            return Err(c.error("_class_name", format!("{class:?}, expected one of {}", known.join(", "))));
        };
        for [encoder, tokenizer] in &ENCODERS[..*encoders] {
            part(c, encoder, "transformers", &["CLIPTextModel", "CLIPTextModelWithProjection"])?;
            part(c, tokenizer, "transformers", &["CLIPTokenizer", "CLIPTokenizerFast"])?;
        }
        part(c, "unet", "diffusers", &["UNet2DConditionModel"])?;
        part(c, "vae", "diffusers", &["AutoencoderKL", "AutoencoderTiny", "VQModel"])?;
        c.ignore(&["requires_safety_checker"]);
        if c.flag("requires_aesthetics_score", false)? {
            return Err(c.error("requires_aesthetics_score", "true, expected false: a refiner is no inpainting model of its own"));
        }
        let is_there = |name: &&&str| c.value(name).is_some_and(|v| v.as_array().is_none_or(|pair| pair.iter().any(|item| !item.is_null())));
        let index = PipelineIndex {
            place: c.place().to_string(),
            class,
            encoders: *encoders,
            scheduler: c.texts("scheduler", 2)?.unwrap_or_default(),
            force_zeros: c.flag("force_zeros_for_empty_prompt", *encoders == 2)?,
            ignored: IGNORED.iter().filter(is_there).map(|name| name.to_string()).collect(),
        };
        c.finish()?;
        Ok(index)
    }

    /// The folders of text encoders, with those of their tokenizers.
    pub fn encoder_folders(&self) -> &'static [[&'static str; 2]] {
        &ENCODERS[..self.encoders]
    }

    fn error(&self, place: &str, fact: impl Into<String>) -> Error {
        Error::new(Kind::Usage, place, fact).remark(&self.place)
    }
}

/// A pair of library and class; the class must be one of `classes`.
fn part(c: &Config, field: &str, library: &str, classes: &[&str]) -> Result<()> {
    let found = c.texts(field, 2)?.unwrap_or_default();
    match found.as_slice() {
        [lib, class] if lib == library && classes.contains(&class.as_str()) => Ok(()),
        _ => Err(c.error(field, format!("{found:?}, expected [{library:?}, one of {classes:?}]"))),
    }
}

/// Loads the folder of a pipeline as a model of `classes`. Prompts are encoded here, once, by what `prepare` gives.
/// `image_size` is rows and columns in pixels; None: what the denoiser was trained on.
pub fn load((folder, loras): (&Path, &[Lora]), classes: &Classes, image_size: Option<[usize; 2]>, prepare: &mut Prepare) -> Result<Pipeline> {
    let index = PipelineIndex::read(folder)?;
    let mut notes: Vec<String> = index.ignored.iter().map(|part| format!("{}: {part} is not used", index.place)).collect();
    let (names, mut conditions) = match &classes.class_tokens {
        Some(path) => by_tokens(&index, classes, path)?,
        None => by_prompts((folder, loras), &index, classes, prepare, &mut notes)?,
    };
    let unet = recognise(&folder.join("unet"))?.with_loras(loras).load()?;
    let vae = load_part(folder, "vae")?;
    let lacks = |part: &str| Error::new(Kind::Config, format!("{}: {part}", index.place), "the model in this folder is another");
    let denoiser = unet.denoiser().ok_or_else(|| lacks("unet"))?;
    let autoencoder = vae.autoencoder().ok_or_else(|| lacks("vae"))?;
    let rows = names.len() + 1;
    let inpaint = InpaintIndex::of_pipeline(folder, names, image_size.map(|[h, w]| h.max(w)), &denoiser, &autoencoder)?;
    if unet.ports(Component::Unet, 1).iter().any(|port| port.name == TIME_IDS) {
        let size = image_size.unwrap_or([inpaint.image_size; 2]);
        conditions.push(Condition { port: TIME_IDS.to_string(), rows: Some(time_ids(size, rows)?) });
    }
    Ok(Pipeline { model: InpaintModel::new(inpaint, unet, vae, conditions)?, notes })
}

fn by_tokens(index: &PipelineIndex, classes: &Classes, path: &Path) -> Result<(Vec<String>, Vec<Condition>)> {
    if !classes.prompts.is_empty() || classes.negative_prompt.is_some() || !classes.textual_inversions.is_empty() {
        return Err(index.error("--class-tokens", "stands in the place of prompts, expected it alone"));
    }
    let names = class_tokens::class_names(path)?;
    let rows = class_tokens::read(path, &names)?;
    Ok((names, vec![Condition { port: class_tokens::PORT.to_string(), rows: Some(rows) }]))
}

fn by_prompts(
    (folder, loras): (&Path, &[Lora]),
    index: &PipelineIndex,
    classes: &Classes,
    prepare: &mut Prepare,
    notes: &mut Vec<String>,
) -> Result<(Vec<String>, Vec<Condition>)> {
    if classes.prompts.is_empty() {
        let fact = format!("a {} knows no classes, expected --prompts FILE with a prompt for each, or --class-tokens FILE", index.class);
        return Err(index.error("--prompts", fact));
    }
    let learned = classes.textual_inversions.iter().map(Learned::read).collect::<Result<Vec<_>>>()?;
    let negative = classes.negative_prompt.as_deref().unwrap_or("");
    let texts: Vec<&str> = classes.prompts.iter().map(|(_, prompt)| prompt.as_str()).chain([negative]).collect();
    let unused = learned.iter().filter(|word| !texts.iter().any(|text| text.contains(&word.token)));
    notes.extend(unused.map(|word| format!("{}: `{}` stands in no prompt", word.place(), word.token)));
    let zero_null = index.force_zeros && classes.negative_prompt.is_none();
    let mut encoded: Vec<EncodedTexts> = Vec::new();
    for (at, [encoder, tokenizer]) in index.encoder_folders().iter().enumerate() {
        let place = folder.join(tokenizer);
        let mut tokenizer = Tokenizer::read(&place)?;
        let mut model = text_encoder(&folder.join(encoder), loras)?;
        for word in &learned {
            word.add(&mut tokenizer, &mut model, at, index.encoders)?;
        }
        if tokenizer.tokens() > model.tokens() {
            let fact = format!("{} tokens, but the text encoder has {}", tokenizer.tokens(), model.tokens());
            return Err(Error::new(Kind::Config, place.display().to_string(), fact));
        }
        let length = tokenizer.model_max_length.map_or(model.config.max_position_embeddings, |most| most.min(model.config.max_position_embeddings));
        if at == 0 {
            notes.extend(cut_off(&tokenizer, classes, length)?);
        }
        encoded.push(encode(&tokenizer, &model, index.encoders == 2, (&texts, length), prepare)?);
    }
    let names = classes.prompts.iter().map(|(name, _)| name.clone()).collect();
    Ok((names, conditions(encoded, texts.len(), zero_null)?))
}

/// The text encoder in a folder.
pub fn text_encoder(folder: &Path, loras: &[Lora]) -> Result<ClipText> {
    let config = Config::read(&folder.join("config.json"))?;
    ClipText::load(&Checkpoint { loras: Loras::new(loras.to_vec()), ..Checkpoint::new(folder, Some(config)) })
}

/// One encoder's values of some texts.
struct EncodedTexts {
    tokens: usize,
    width: usize,
    /// `[texts, tokens, width]`.
    hidden: Vec<f32>,
    /// `[texts, projection]`; empty where there is no projection.
    embeds: Vec<f32>,
}

/// A warning for each prompt that is longer than `length` tokens.
fn cut_off(tokenizer: &Tokenizer, classes: &Classes, length: usize) -> Result<Vec<String>> {
    let of_classes = classes.prompts.iter().map(|(name, prompt)| (format!("prompt of class `{name}`"), prompt));
    let negative = classes.negative_prompt.iter().map(|prompt| ("negative prompt".to_string(), prompt));
    let mut notes = Vec::new();
    for (what, prompt) in of_classes.chain(negative) {
        let count = tokenizer.count(prompt)?;
        if count > length {
            notes.push(format!("{what}: {count} tokens, the last {} are cut off: the text encoder takes {length} with start and end", count - length));
        }
    }
    Ok(notes)
}

/// Texts of `tokens` tokens, one by one: what a text becomes does not depend on the others.
fn encode(tokenizer: &Tokenizer, model: &ClipText, penultimate: bool, (texts, tokens): (&[&str], usize), prepare: &mut Prepare) -> Result<EncodedTexts> {
    let mut tape = Tape::new();
    let input = tape.input(INPUT_IDS, &[1, tokens], DType::U32);
    let outputs = model.forward(&mut tape, input)?;
    tape.output("hidden", if penultimate { outputs.penultimate_hidden_state } else { outputs.last_hidden_state });
    if let Some(embeds) = outputs.text_embeds {
        tape.output(TEXT_EMBEDS, embeds);
    }
    let mut session = prepare(tape)?;
    let mut encoded = EncodedTexts { tokens, width: model.config.hidden_size, hidden: Vec::new(), embeds: Vec::new() };
    for text in texts {
        let ids = tokenizer.encode(text, tokens)?;
        session.write_indices(INPUT_IDS, &ids)?;
        session.run()?;
        encoded.hidden.extend(session.read("hidden")?.data);
        if outputs.text_embeds.is_some() {
            encoded.embeds.extend(session.read(TEXT_EMBEDS)?.data);
        }
    }
    if encoded.hidden.iter().chain(&encoded.embeds).any(|v| !v.is_finite()) {
        return Err(Error::new(Kind::Numeric, "text encoder", "its result is not finite"));
    }
    Ok(encoded)
}

/// Tokens of all encoders side by side and, where there are two, the last one's projection. The null class is the last row.
fn conditions(encoded: Vec<EncodedTexts>, texts: usize, zero_null: bool) -> Result<Vec<Condition>> {
    let tokens = encoded[0].tokens;
    if let Some(other) = encoded.iter().find(|e| e.tokens != tokens) {
        let fact = format!("{} tokens of a text, expected {tokens} as the first tokenizer's", other.tokens);
        return Err(Error::new(Kind::Config, "tokenizer_2", fact));
    }
    let width: usize = encoded.iter().map(|e| e.width).sum();
    let mut hidden = Vec::with_capacity(texts * tokens * width);
    for token in 0..texts * tokens {
        encoded.iter().for_each(|e| hidden.extend_from_slice(&e.hidden[token * e.width..(token + 1) * e.width]));
    }
    let zeroed = |mut values: Vec<f32>| {
        let null = values.len() / texts * (texts - 1);
        if zero_null {
            values[null..].fill(0.0);
        }
        values
    };
    let weight =
        |port: &str, shape: &[usize], values| Ok(Condition { port: port.to_string(), rows: Some(Weight::new(port, Array::new(shape, zeroed(values))?)) });
    let mut conditions = vec![weight(class_tokens::PORT, &[texts, tokens, width], hidden)?];
    if let [_, last] = encoded.as_slice() {
        if last.embeds.is_empty() {
            return Err(Error::new(Kind::Config, "text_encoder_2", "has no projection, expected a CLIPTextModelWithProjection"));
        }
        conditions.push(weight(TEXT_EMBEDS, &[texts, last.embeds.len() / texts], last.embeds.clone())?);
    }
    Ok(conditions)
}

/// Original size, corner of the crop, target size of each class: the images as they are. `[classes + 1, 6]`.
fn time_ids(image_size: [usize; 2], rows: usize) -> Result<Weight> {
    let [height, width] = image_size.map(|pixels| pixels as f32);
    Ok(Weight::new(TIME_IDS, Array::new(&[rows, 6], [height, width, 0.0, 0.0, height, width].repeat(rows))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<PipelineIndex> {
        let text = r#"{"_class_name": "StableDiffusionInpaintPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"]"#;
        PipelineIndex::from_config(&Config::parse(&format!("{text}{fields}}}"), "model_index.json").unwrap())
    }

    #[test]
    fn parts_that_are_not_used_are_told() {
        let index = parse(
            r#", "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "feature_extractor": [null, null], "requires_safety_checker": true"#,
        );
        let index = index.unwrap();
        assert_eq!((index.encoders, index.force_zeros, index.ignored), (1, false, vec!["safety_checker".to_string()]));
    }

    #[test]
    fn what_is_no_such_pipeline_is_named() {
        assert!(parse(r#", "movq": ["diffusers", "VQModel"]"#).unwrap_err().to_string().contains("unknown or unsupported field `movq`"));
        assert!(parse(r#", "requires_aesthetics_score": true"#).unwrap_err().to_string().contains("requires_aesthetics_score"));
        let error = PipelineIndex::from_config(&Config::parse(r#"{"_class_name": "FluxPipeline"}"#, "m").unwrap()).unwrap_err();
        assert!(error.to_string().contains("_class_name: \"FluxPipeline\", expected one of StableDiffusionInpaintPipeline"), "{error}");
        let error =
            PipelineIndex::from_config(&Config::parse(r#"{"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "T5"]}"#, "m").unwrap());
        assert!(error.unwrap_err().to_string().contains("text_encoder: [\"transformers\", \"T5\"], expected [\"transformers\", one of"));
    }
}
