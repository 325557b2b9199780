//! What a latent inpainting model's folder says about it: `model_index.json` beside `unet/`, `vae/` and `scheduler/`.

use std::path::{Path, PathBuf};

use crate::base::{Error, Kind, Result};
use crate::models::class_tokens;
use crate::models::inpaint_model::{Condition, unet_input};
use crate::models::model::{Autoencoder, Denoiser};
use crate::weights::Config;

/// One part of the UNet's input; they are joined along the channels in the order of `unet_input`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UNetInput {
    /// Noisy latents.
    Latents,
    /// One channel: 1 where a latent cell is repainted.
    Hole,
    /// Latents of the image with its hole filled with `masked_fill`, scaled.
    MaskedImageLatents,
}

/// How a pixel mask becomes a hole in the latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoleToLatent {
    /// A cell is open if any of its pixels is.
    MaxPool,
    /// A cell is what its first pixel is: diffusers' inpainting pipelines resize the mask so.
    Nearest,
}

/// How the hole in the latents becomes the hole in the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolePixels {
    /// All pixels of an open cell.
    LatentCell,
    /// The pixels of the mask.
    Mask,
}

/// `model_index.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct InpaintIndex {
    /// The file, as errors show it.
    pub place: String,
    /// Rows and columns of the images, in pixels.
    pub image_size: usize,
    /// The model's latents are the encoder's times this.
    pub scaling_factor: f32,
    /// The position of a name is the class label.
    pub class_names: Vec<String>,
    /// The label that means no class.
    pub null_class: usize,
    pub unet_input: Vec<UNetInput>,
    pub hole_to_latent: HoleToLatent,
    pub hole_pixels: HolePixels,
    /// Value of the masked image's pixels inside the hole, in [0, 1].
    pub masked_fill: f32,
    /// The mask is dilated by this many pixels first.
    pub dilate_px: usize,
    /// After each step the known latents are the image's own, noised as the step's.
    pub reimpose_known: bool,
    /// `scheduler/scheduler_config.json`, which the caller reads.
    pub scheduler_config: PathBuf,
    /// A file with the tokens of each class, for a denoiser that takes `encoder_hidden_states`.
    pub class_tokens: Option<PathBuf>,
}

impl InpaintIndex {
    /// `_class_name` of the index.
    pub const CLASS: &str = "ClassConditionalInpaint";

    /// Reads `model_index.json` of a folder.
    pub fn read(folder: &Path) -> Result<InpaintIndex> {
        Self::from_config(&Config::read(&folder.join("model_index.json"))?, folder)
    }

    /// What diffusers' own pipelines do with a denoiser and an autoencoder: the mask is resized by nearest neighbours, its
    /// pixels are grey in the masked image, and a denoiser that sees no mask keeps the known latents by re-noising them.
    pub fn of_pipeline(folder: &Path, class_names: Vec<String>, image_size: Option<usize>, d: &Denoiser, a: &Autoencoder) -> Result<InpaintIndex> {
        let place = folder.join("model_index.json").display().to_string();
        let error = |field: &str, fact: String| Error::new(Kind::Config, format!("{place}: {field}"), fact);
        let Some(parts) = unet_input(d.in_channels, a.latent_channels) else {
            let fact = format!(
                "{} input channels with {} per latent, expected latents alone, with a mask, or with a mask and a masked image",
                d.in_channels, a.latent_channels
            );
            return Err(error("unet", fact));
        };
        let sizes = d.sample_size.map(|[h, w]| h.max(w) * a.downscale);
        let image_size = image_size.or(sizes).ok_or_else(|| error("unet", "sample_size is null: give the size of the images".to_string()))?;
        Ok(InpaintIndex {
            image_size,
            scaling_factor: a.scaling_factor.ok_or_else(|| error("vae", "its config.json has no scaling_factor".to_string()))?,
            null_class: class_names.len(),
            class_names,
            reimpose_known: parts.len() == 1,
            unet_input: parts,
            hole_to_latent: HoleToLatent::Nearest,
            hole_pixels: HolePixels::Mask,
            masked_fill: 0.5,
            dilate_px: 0,
            scheduler_config: folder.join("scheduler").join("scheduler_config.json"),
            class_tokens: None,
            place,
        })
    }

    fn from_config(c: &Config, folder: &Path) -> Result<InpaintIndex> {
        c.require("_class_name", Self::CLASS)?;
        component(c, "unet", &[["diffusers", "UNet2DModel"], ["diffusers", "UNet2DConditionModel"]])?;
        let coders = [["taesd", "TAESD"], ["diffusers", "AutoencoderKL"], ["diffusers", "AutoencoderTiny"], ["diffusers", "VQModel"]];
        component(c, "vae", &coders)?;
        let found = c.texts("scheduler", 2)?.unwrap_or_default();
        if !matches!(found.as_slice(), [library, class] if library == "diffusers" && class.ends_with("Scheduler")) {
            return Err(c.error("scheduler", format!("{found:?}, expected [\"diffusers\", \"DDIMScheduler\"] or another scheduler of diffusers")));
        }
        let inputs = [("latents", UNetInput::Latents), ("hole", UNetInput::Hole), ("masked_image_latents", UNetInput::MaskedImageLatents)];
        let class_names = c.texts("class_names", 100_000)?.ok_or_else(|| c.error("class_names", "absent, expected a list of texts"))?;
        let file_name = |name: &str| !name.is_empty() && !name.contains(['/', '\\', ':', '\0']);
        let class_tokens = c.has("class_tokens").then(|| c.text("class_tokens", None)).transpose()?;
        if let Some(name) = class_tokens.as_ref().filter(|name| !file_name(name)) {
            return Err(c.error("class_tokens", format!("{name:?}, expected a file name within the folder")));
        }
        let index = InpaintIndex {
            place: c.place().to_string(),
            class_tokens: class_tokens.map(|name| folder.join(name)),
            image_size: c.integer("image_size", None, 1..=65_536)?,
            scaling_factor: c.number("scaling_factor", None, 1e-6..=1e6)? as f32,
            class_names,
            null_class: c.integer("null_class", None, 0..=1_000_000)?,
            unet_input: c.choices("unet_input", None, &inputs, inputs.len())?,
            hole_to_latent: c.choice("hole_to_latent", None, &[("max_pool", HoleToLatent::MaxPool), ("nearest", HoleToLatent::Nearest)])?,
            hole_pixels: c.choice("hole_pixels", None, &[("latent_cell", HolePixels::LatentCell), ("mask", HolePixels::Mask)])?,
            masked_fill: c.number("masked_fill", None, 0.0..=1.0)? as f32,
            dilate_px: c.integer("dilate_px", None, 0..=4096)?,
            reimpose_known: c.flag("reimpose_known", None)?,
            scheduler_config: folder.join("scheduler").join("scheduler_config.json"),
        };
        c.finish()?;
        Ok(index)
    }

    /// Channels of the denoiser's input for `latents` channels of latents.
    pub fn input_channels(&self, latents: usize) -> usize {
        Self::channels(&self.unet_input, latents)
    }

    /// Channels of `parts` side by side.
    pub fn channels(parts: &[UNetInput], latents: usize) -> usize {
        parts.iter().map(|part| if *part == UNetInput::Hole { 1 } else { latents }).sum()
    }

    fn error(&self, field: &str, fact: String) -> Error {
        Error::new(Kind::Config, format!("{}: {field}", self.place), fact)
    }

    /// What the classes are to the denoiser, as far as the folder says.
    pub fn conditions(&self) -> Result<Vec<Condition>> {
        let tokens = self.class_tokens.as_ref().map(|path| class_tokens::read(path, &self.class_names)).transpose()?;
        Ok(tokens.into_iter().map(|rows| Condition { port: class_tokens::PORT.to_string(), rows: Some(rows) }).collect())
    }

    /// Holds the index against its parts.
    pub fn check(&self, unet: &Denoiser, vae: &Autoencoder) -> Result<()> {
        let latents = vae.latent_channels;
        let is_double = |i: usize| self.unet_input[..i].contains(&self.unet_input[i]);
        if (0..self.unet_input.len()).any(is_double) || !self.unet_input.contains(&UNetInput::Latents) {
            return Err(self.error("unet_input", format!("{:?}, expected `latents` and others once each", self.unet_input)));
        }
        let channels = self.input_channels(latents);
        if channels != unet.in_channels {
            let fact = format!("{channels} channels with {latents} per latent, expected {} as unet/config.json: in_channels says", unet.in_channels);
            return Err(self.error("unet_input", fact));
        }
        if unet.out_channels != latents {
            let fact = format!("out_channels is {} in unet/config.json, expected {latents} as vae/config.json: latent_channels says", unet.out_channels);
            return Err(self.error("unet", fact));
        }
        let step = vae.downscale * unet.size_multiple;
        if self.image_size == 0 || !self.image_size.is_multiple_of(step) {
            let fact = format!("{}, expected a multiple of {step} ({} for the vae times {} for the unet)", self.image_size, vae.downscale, unet.size_multiple);
            return Err(self.error("image_size", fact));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor != 0.0) {
            return Err(self.error("scaling_factor", format!("{}, expected a number above 0", self.scaling_factor)));
        }
        self.check_classes()?;
        if !self.scheduler_config.is_file() {
            return Err(Error::new(Kind::Io, self.scheduler_config.display().to_string(), "no such file, expected the scheduler's settings"));
        }
        Ok(())
    }

    fn check_classes(&self) -> Result<()> {
        let names = &self.class_names;
        if names.is_empty() || names.iter().any(String::is_empty) {
            return Err(self.error("class_names", "expected one name or more, none of them empty".to_string()));
        }
        if let Some(name) = (1..names.len()).map(|i| &names[i]).enumerate().find(|(i, name)| names[..=*i].contains(name)) {
            return Err(self.error("class_names", format!("`{}` stands there twice", name.1)));
        }
        if self.null_class != names.len() {
            return Err(self.error("null_class", format!("{}, expected {}: the label after the classes", self.null_class, names.len())));
        }
        Ok(())
    }
}

/// A pair of library and class, as diffusers writes it.
fn component(c: &Config, field: &str, supported: &[[&str; 2]]) -> Result<()> {
    let found = c.texts(field, 2)?.unwrap_or_default();
    if supported.iter().any(|pair| found == pair) {
        return Ok(());
    }
    Err(c.error(field, format!("{found:?}, expected {supported:?}")))
}
