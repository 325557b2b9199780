//! A class-conditional latent inpainting model: a folder with `model_index.json`, `unet/`, `vae/` and `scheduler/`.

use std::path::{Path, PathBuf};

use crate::base::{Error, Kind, Result};
use crate::models::taesd::{Taesd, TaesdConfig};
use crate::models::unet_2d::UNet2DModel;
use crate::models::unet_2d_config::{ClassEmbed, UNet2DConfig};
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
}

/// How the hole in the latents becomes the hole in the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolePixels {
    /// All pixels of an open cell.
    LatentCell,
}

/// `model_index.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct InpaintIndex {
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
}

/// The index and the models.
pub struct InpaintModel {
    pub index: InpaintIndex,
    pub unet: UNet2DModel,
    pub vae: Taesd,
}

impl InpaintIndex {
    /// `_class_name` of the index.
    pub const CLASS: &str = "ClassConditionalInpaint";

    /// Reads `model_index.json` of a folder, and holds it against the parts' config.json files. No weights are read.
    pub fn read(folder: &Path) -> Result<InpaintIndex> {
        let c = Config::read(&folder.join("model_index.json"))?;
        let index = Self::from_config(&c, folder)?;
        let unet = UNet2DConfig::read(&folder.join("unet").join("config.json"))?;
        let vae = TaesdConfig::read(&folder.join("vae").join("config.json"))?;
        index.check(&c, &unet, &vae)?;
        Ok(index)
    }

    fn from_config(c: &Config, folder: &Path) -> Result<InpaintIndex> {
        c.require("_class_name", Self::CLASS)?;
        component(c, "unet", &[["diffusers", "UNet2DModel"]])?;
        component(c, "vae", &[["taesd", "TAESD"]])?;
        component(c, "scheduler", &[["diffusers", "DDIMScheduler"], ["diffusers", "DDPMScheduler"]])?;
        let inputs = [("latents", UNetInput::Latents), ("hole", UNetInput::Hole), ("masked_image_latents", UNetInput::MaskedImageLatents)];
        let class_names = c.texts("class_names", 100_000)?.ok_or_else(|| c.error("class_names", "absent, expected a list of texts"))?;
        let index = InpaintIndex {
            image_size: c.integer("image_size", None, 1..=65_536)?,
            scaling_factor: c.number("scaling_factor", None, 1e-6..=1e6)? as f32,
            class_names,
            null_class: c.integer("null_class", None, 0..=1_000_000)?,
            unet_input: c.choices("unet_input", None, &inputs, inputs.len())?,
            hole_to_latent: c.choice("hole_to_latent", None, &[("max_pool", HoleToLatent::MaxPool)])?,
            hole_pixels: c.choice("hole_pixels", None, &[("latent_cell", HolePixels::LatentCell)])?,
            masked_fill: c.number("masked_fill", None, 0.0..=1.0)? as f32,
            dilate_px: c.integer("dilate_px", None, 0..=4096)?,
            reimpose_known: c.flag("reimpose_known", None)?,
            scheduler_config: folder.join("scheduler").join("scheduler_config.json"),
        };
        c.finish()?;
        Ok(index)
    }

    /// Channels of the UNet's input for `latents` channels of latents.
    pub fn input_channels(&self, latents: usize) -> usize {
        self.unet_input.iter().map(|part| if *part == UNetInput::Hole { 1 } else { latents }).sum()
    }

    /// Rows and columns of the latents.
    pub fn latent_size(&self, downscale: usize) -> usize {
        self.image_size / downscale
    }

    fn check(&self, c: &Config, unet: &UNet2DConfig, vae: &TaesdConfig) -> Result<()> {
        let latents = vae.latent_channels;
        let is_double = |i: usize| self.unet_input[..i].contains(&self.unet_input[i]);
        if (0..self.unet_input.len()).any(is_double) || !self.unet_input.contains(&UNetInput::Latents) {
            return Err(c.error("unet_input", format!("{:?}, expected `latents` and others once each", self.unet_input)));
        }
        if self.input_channels(latents) != unet.in_channels {
            let fact = format!(
                "{} channels with {latents} per latent, expected {} as unet/config.json: in_channels says",
                self.input_channels(latents),
                unet.in_channels
            );
            return Err(c.error("unet_input", fact));
        }
        if unet.out_channels != latents {
            let fact = format!("out_channels is {} in unet/config.json, expected {latents} as vae/config.json: latent_channels says", unet.out_channels);
            return Err(c.error("unet", fact));
        }
        let step = vae.downscale * unet.size_multiple();
        if !self.image_size.is_multiple_of(step) {
            return Err(c.error(
                "image_size",
                format!("{}, expected a multiple of {step} ({} for the vae times {} for the unet)", self.image_size, vae.downscale, unet.size_multiple()),
            ));
        }
        self.check_classes(c, unet)?;
        if !self.scheduler_config.is_file() {
            return Err(Error::new(Kind::Io, self.scheduler_config.display().to_string(), "no such file, expected the scheduler's settings"));
        }
        Ok(())
    }

    fn check_classes(&self, c: &Config, unet: &UNet2DConfig) -> Result<()> {
        let names = &self.class_names;
        if names.is_empty() || names.iter().any(String::is_empty) {
            return Err(c.error("class_names", "expected one name or more, none of them empty"));
        }
        if let Some(name) = (1..names.len()).map(|i| &names[i]).enumerate().find(|(i, name)| names[..=*i].contains(name)) {
            return Err(c.error("class_names", format!("`{}` stands there twice", name.1)));
        }
        if unet.class_embed != ClassEmbed::Labels(names.len() + 1) {
            let found = match unet.class_embed {
                ClassEmbed::Labels(n) => format!("num_class_embeds {n}"),
                other => format!("class_embed_type {other:?}"),
            };
            let fact = format!("{} classes and the null class, but unet/config.json has {found}, expected num_class_embeds {}", names.len(), names.len() + 1);
            return Err(c.error("class_names", fact));
        }
        if self.null_class != names.len() {
            return Err(c.error("null_class", format!("{}, expected {}: the label after the classes", self.null_class, names.len())));
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

impl InpaintModel {
    /// Loads the index and both models.
    pub fn load(folder: &Path) -> Result<InpaintModel> {
        let index = InpaintIndex::read(folder)?;
        Ok(InpaintModel { index, unet: UNet2DModel::load(&folder.join("unet"))?, vae: Taesd::load(&folder.join("vae"))? })
    }

    /// Numbers in all parameters.
    pub fn parameters(&self) -> u64 {
        self.unet.parameters + self.vae.parameters()
    }

    /// Channels, rows and columns of the latents of an image of `image_size`.
    pub fn latent_shape(&self) -> [usize; 3] {
        let size = self.index.latent_size(self.vae.config.downscale);
        [self.vae.config.latent_channels, size, size]
    }
}
