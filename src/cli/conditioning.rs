//! Flags of `synthesize` and `forward` that say what each class is to the model.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::component::Part;
use super::tensors::Tensors;
use crate::base::{Error, Kind, Result};
use crate::driver::conditioning::{Conditioning, InputFile, read_prompts};
use crate::exec::Device;
use crate::models::inpaint_index::InpaintIndex;
use crate::models::inpaint_model::InpaintModel;
use crate::models::textual_inversion::{Inversion, Learned};
use crate::models::{Lora, PipelineIndex, Tokenizer, pipeline};
use crate::plan::{Options, Tape};
use crate::weights::{Config, Store};

#[derive(clap::Args, Clone)]
pub(crate) struct ConditionFlags {
    /// The prompt of each class, for a pipeline of diffusers: a table in JSON or TOML; labels are in the order of the alphabet
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// The prompt of one class; goes before that of --prompts; repeatable
    #[arg(long, value_name = "CLASS=TEXT")]
    prompt: Vec<String>,
    /// What guidance leads away from [default: the pipeline's own, mostly the empty prompt]
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Learned tokens of each class and of no class (`null`), in the place of prompts
    #[arg(long, value_name = "FILE.safetensors")]
    class_tokens: Option<PathBuf>,
    /// A learned word for prompts, of diffusers or a web UI [TOKEN: the file's own]; repeatable
    #[arg(long, value_name = "PATH[=TOKEN]")]
    textual_inversion: Vec<String>,
}

impl ConditionFlags {
    /// Whether any of them stands on the command line.
    pub(crate) fn given(&self) -> bool {
        let files = self.prompts.is_some() || self.class_tokens.is_some() || !self.textual_inversion.is_empty();
        files || !self.prompt.is_empty() || self.negative_prompt.is_some()
    }

    /// Reads what they name.
    pub(crate) fn read(&self) -> Result<Conditioning> {
        let mut prompts = self.prompts.as_deref().map(read_prompts).transpose()?.unwrap_or_default();
        for text in &self.prompt {
            let pair = text.split_once('=').filter(|(class, _)| !class.is_empty());
            let (class, prompt) = pair.ok_or_else(|| Error::new(Kind::Usage, "--prompt", format!("{text:?}, expected CLASS=TEXT")))?;
            prompts.insert(class.to_string(), prompt.to_string());
        }
        let word = |text: &String| {
            let Inversion { token, path } = Inversion::parse(text);
            InputFile::new(&path, token)
        };
        Ok(Conditioning {
            image_size: None,
            negative_prompt: self.negative_prompt.clone(),
            class_tokens: self.class_tokens.as_ref().map(|path| InputFile::new(path, None)).transpose()?,
            textual_inversions: self.textual_inversion.iter().map(word).collect::<Result<_>>()?,
            prompts,
        })
    }

    /// What `synthesize` takes: the flags, or an earlier run's where there are none.
    pub(crate) fn resolve(&self, size: Option<usize>, classes: Option<&[String]>, earlier: Option<&Conditioning>) -> Result<Conditioning> {
        if let Some(earlier) = earlier {
            if self.given() || size.is_some() {
                return Err(Error::new(
                    Kind::Usage,
                    "--config",
                    "says what the classes are, expected none of --prompts, --prompt, --negative-prompt, --class-tokens, --textual-inversion and --size beside it",
                ));
            }
            earlier.verify()?;
            return Ok(earlier.clone());
        }
        let conditioning = Conditioning { image_size: size, ..self.read()? };
        conditioning.check()?;
        let has = |class: &String| conditioning.prompts.keys().any(|name| name.eq_ignore_ascii_case(class));
        if let Some(class) = classes.into_iter().flatten().find(|class| !conditioning.prompts.is_empty() && !has(class)) {
            let place = self.prompts.as_ref().map_or("--prompt".to_string(), |path| path.display().to_string());
            let names: Vec<&str> = conditioning.prompts.keys().map(String::as_str).collect();
            return Err(Error::new(Kind::Usage, place, format!("no prompt for class `{class}`, there are prompts for {}", names.join(", "))));
        }
        Ok(conditioning)
    }
}

/// Loads the inpainting model in a folder: one that knows its classes, or a pipeline of diffusers with the classes given here; with LoRAs.
/// `image_size` is rows and columns; None: the conditioning's or the model's. What the user should know goes to stderr.
pub(crate) fn load(device: &Device, (folder, loras): (&Path, &[Lora]), conditioning: &Conditioning, image_size: Option<[usize; 2]>) -> Result<InpaintModel> {
    if folder.is_file() {
        return Err(Error::new(Kind::Usage, folder.display().to_string(), "is a file, expected the folder of an inpainting model, with model_index.json"));
    }
    let class = Config::read(&folder.join("model_index.json"))?.text("_class_name", None)?;
    if class != InpaintIndex::CLASS {
        let size = image_size.or(conditioning.image_size.map(|size| [size; 2]));
        let mut prepare = |tape: Tape| device.prepare(tape, &Options::default());
        let loaded = pipeline::load((folder, loras), &conditioning.classes(), size, &mut prepare)?;
        loaded.notes.iter().for_each(|note| eprintln!("note: {note}"));
        return Ok(loaded.model);
    }
    let tokens = conditioning.class_tokens.as_ref().map(|file| file.path.as_path());
    let unused = Conditioning { class_tokens: None, ..conditioning.clone() };
    if !unused.is_none() {
        let fact =
            format!("is a {class} of classes and a size of its own, expected none of --prompts, --prompt, --negative-prompt, --textual-inversion and --size");
        return Err(Error::new(Kind::Usage, folder.display().to_string(), fact));
    }
    InpaintModel::load_with(folder, tokens, loras)
}

/// The model of `forward --component inpaint`, for images of the size of the input `image`.
pub(crate) fn load_for(device: &Device, model: (&Path, &[Lora]), flags: &ConditionFlags, inputs: &Tensors) -> Result<InpaintModel> {
    let image = inputs.tensor("image")?;
    let size = image.shape.nhwc().map(|[_, height, width, _]| [height, width]);
    load(device, model, &flags.read()?, size)
}

/// What `inspect` shows of a pipeline's index.
pub(crate) fn pipeline(folder: &Path) -> Result<Value> {
    let index = PipelineIndex::read(folder)?;
    Ok(json!({
        "class": index.class, "text_encoders": index.encoders, "scheduler": index.scheduler.last(), "force_zeros_for_empty_prompt": index.force_zeros,
        "not_used": index.ignored, "classes": "by --prompts or --class-tokens",
    }))
}

/// What `inspect` shows of a tokenizer.
pub(crate) fn tokenizer(folder: &Path) -> Result<Part> {
    let tokenizer = Tokenizer::read(folder)?;
    let name = folder.file_name().map_or("tokenizer".to_string(), |name| name.to_string_lossy().into_owned());
    let facts = json!({ "tokens": tokenizer.tokens(), "model_max_length": tokenizer.model_max_length, "pads_with": tokenizer.padding() });
    Ok(Part::facts(&format!("{name} (CLIP tokenizer)"), facts))
}

/// What `inspect` shows of a learned word.
pub(crate) fn word(path: &Path) -> Result<Part> {
    let word = Learned::read(&Inversion { token: None, path: path.to_path_buf() })?;
    let (vectors, widths) = word.sizes();
    Ok(Part::facts("word", json!({ "token": word.token, "vectors": vectors, "width": widths })))
}

/// What `inspect` shows of class tokens.
pub(crate) fn class_tokens(path: &Path) -> Result<Part> {
    let store = Store::open(path)?;
    let shapes = store.entries().iter().map(|entry| (entry.name.clone(), json!(entry.shape))).collect();
    Ok(Part::facts("classes", Value::Object(shapes)))
}
