//! A latent inpainting model conditioned by classes: a denoiser, an autoencoder, and what each class is to the denoiser.

use std::path::Path;

use crate::base::{DType, Error, Kind, Result};
use crate::models::inpaint_index::{InpaintIndex, UNetInput};
use crate::models::model::{Autoencoder, Component, Denoiser, Inputs, Model, Output};
use crate::models::{Lora, recognise};
use crate::ops::activation::Function;
use crate::plan::{Tape, Tensor, Weight};

/// One conditioning input of the denoiser and its value for every class.
pub struct Condition {
    /// `class_labels`, `encoder_hidden_states`, `text_embeds`, `time_ids`.
    pub port: String,
    /// `[classes + 1, ...]`, the last row is the null class; None: the input is the label itself.
    pub rows: Option<Weight>,
}

/// The index and the models.
pub struct InpaintModel {
    pub index: InpaintIndex,
    pub unet: Box<dyn Model>,
    pub vae: Box<dyn Model>,
    pub denoiser: Denoiser,
    pub autoencoder: Autoencoder,
    conditions: Vec<Condition>,
}

impl InpaintModel {
    /// Loads the folder of a model whose denoiser takes class labels, or whose index names its class tokens.
    pub fn load(folder: &Path) -> Result<InpaintModel> {
        Self::load_with(folder, None, &[])
    }

    /// The same, with a file of class tokens in the place of the index's own, and with LoRAs added to the denoiser's weights.
    pub fn load_with(folder: &Path, class_tokens: Option<&Path>, loras: &[Lora]) -> Result<InpaintModel> {
        let mut index = InpaintIndex::read(folder)?;
        index.class_tokens = class_tokens.map(Path::to_path_buf).or(index.class_tokens);
        let unet = recognise(&folder.join("unet"))?.with_loras(loras).load()?;
        let vae = load_part(folder, "vae")?;
        let conditions = index.conditions()?;
        Self::new(index, unet, vae, conditions)
    }

    /// Holds the parts against each other. Fails with the field or input that does not fit.
    pub fn new(index: InpaintIndex, unet: Box<dyn Model>, vae: Box<dyn Model>, mut conditions: Vec<Condition>) -> Result<InpaintModel> {
        let place = |part: &str| format!("{}: {part}", index.place);
        let lacks = |part: &str, what: &str| Error::new(Kind::Config, place(part), format!("the model in this folder is no {what}"));
        let denoiser = unet.denoiser().ok_or_else(|| lacks("unet", "denoiser"))?;
        let autoencoder = vae.autoencoder().ok_or_else(|| lacks("vae", "autoencoder"))?;
        let coders = vae.components();
        for coder in [Component::VaeEncoder, Component::VaeDecoder] {
            if !coders.contains(&coder) {
                return Err(lacks("vae", coder.name()));
            }
        }
        index.check(&denoiser, &autoencoder)?;
        let rows = index.class_names.len() + 1;
        for port in unet.ports(Component::Unet, 1).iter().filter(|port| port.name != "sample" && port.name != "timestep") {
            let given = conditions.iter().find(|condition| condition.port == port.name);
            match given.map(|condition| &condition.rows) {
                None if port.optional => {}
                None if port.dtype == DType::U32 && port.below == Some(rows) => conditions.push(Condition { port: port.name.clone(), rows: None }),
                None if port.dtype == DType::U32 => {
                    let fact =
                        format!("{} classes and the null class, but the unet has {} class embeddings, expected {rows}", rows - 1, port.below.unwrap_or(0));
                    return Err(Error::new(Kind::Config, place("class_names"), fact));
                }
                None => {
                    return Err(Error::new(
                        Kind::Config,
                        place("unet"),
                        format!("it is conditioned by {}, and nothing says what that is for a class", port.name),
                    ));
                }
                Some(Some(table)) if !fits(table.dims(), rows, &port.shape) => {
                    let fact = format!("{:?}, expected [{rows}, ...] with {:?} for each class and the null class", table.dims(), &port.shape[1..]);
                    return Err(Error::new(Kind::Config, place(&port.name), fact));
                }
                Some(_) => {}
            }
        }
        let takes = |condition: &&Condition| unet.ports(Component::Unet, 1).iter().any(|port| port.name == condition.port);
        if let Some(unused) = conditions.iter().find(|condition| !takes(condition)) {
            return Err(Error::new(Kind::Config, place("unet"), format!("it takes no {}, which was given for its classes", unused.port)));
        }
        Ok(InpaintModel { index, unet, vae, denoiser, autoencoder, conditions })
    }

    /// What the classes are to the denoiser.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// Numbers in all parameters.
    pub fn parameters(&self) -> u64 {
        self.unet.parameters() + self.vae.parameters()
    }

    /// Rows and columns of images must be multiples of this.
    pub fn size_multiple(&self) -> usize {
        self.autoencoder.downscale * self.denoiser.size_multiple
    }

    /// Channels, rows and columns of the latents of an image of `image_size`.
    pub fn latent_shape(&self) -> [usize; 3] {
        let size = self.index.image_size / self.autoencoder.downscale;
        [self.autoencoder.latent_channels, size, size]
    }

    /// image `[N, H, W, 3]` in [0, 1] -> the denoiser's latents `[N, h, w, C]`: the posterior's mode where there is one.
    pub fn encode(&self, t: &mut Tape, image: Tensor) -> Result<Tensor> {
        let outputs = self.encode_outputs(t, image)?;
        let latents = find(&outputs, "latents").or_else(|| find(&outputs, "latent_dist_mean"));
        let latents = latents.ok_or_else(|| t.mismatch("the encoder gives no latents".to_string()))?;
        let [scale, shift] = self.latent_affine();
        affine(t, latents, scale, shift)
    }

    /// image `[N, H, W, 3]` in [0, 1] -> the mean and the logarithm of the variance of the encoder's own latents, each
    /// `[N, h, w, C]`. Fails where the encoder gives latents alone.
    pub fn encode_moments(&self, t: &mut Tape, image: Tensor) -> Result<[Tensor; 2]> {
        let outputs = self.encode_outputs(t, image)?;
        match (find(&outputs, "latent_dist_mean"), find(&outputs, "latent_dist_logvar")) {
            (Some(mean), Some(logvar)) => Ok([mean, logvar]),
            _ => Err(Error::new(Kind::Usage, "--posterior", "sample, but this model's encoder gives latents and no Gaussian of them, expected mode")),
        }
    }

    fn encode_outputs(&self, t: &mut Tape, image: Tensor) -> Result<Vec<Output>> {
        let [black, white] = self.autoencoder.pixel_range;
        let pixels = affine(t, image, white - black, black)?;
        self.vae.record(t, Component::VaeEncoder, &Inputs::new([("sample".to_string(), pixels)]))
    }

    /// The denoiser's latents are the encoder's times the first plus the second.
    pub fn latent_affine(&self) -> [f32; 2] {
        let scale = self.index.scaling_factor;
        [scale, -self.autoencoder.shift_factor * scale]
    }

    /// latents `[N, h, w, C]` as the denoiser has them -> image `[N, H, W, 3]`, about [0, 1].
    pub fn decode(&self, t: &mut Tape, latents: Tensor) -> Result<Tensor> {
        let latents = affine(t, latents, 1.0 / self.index.scaling_factor, self.autoencoder.shift_factor)?;
        let inputs = Inputs::new([("latents".to_string(), latents)]);
        let outputs = self.vae.record(t, Component::VaeDecoder, &inputs)?;
        let sample = outputs.first().ok_or_else(|| t.mismatch("the decoder gives no sample".to_string()))?.tensor;
        let [black, white] = self.autoencoder.pixel_range;
        affine(t, sample, 1.0 / (white - black), -black / (white - black))
    }

    /// sample `[N, h, w, in_channels]`, timestep f32 `[1]`, labels u32 `[N]` (the null class is the number of classes) ->
    /// what the denoiser predicts, `[N, h, w, C]`.
    pub fn predict(&self, t: &mut Tape, sample: Tensor, timestep: Tensor, labels: Tensor) -> Result<Tensor> {
        let mut inputs = vec![("sample".to_string(), sample), ("timestep".to_string(), timestep)];
        for condition in &self.conditions {
            let tensor = match &condition.rows {
                None => labels,
                Some(rows) => t.scope(&condition.port, |t| look_up(t, rows, labels))?,
            };
            inputs.push((condition.port.clone(), tensor));
        }
        let outputs = t.scope("unet", |t| {
            let outputs = self.unet.record(t, Component::Unet, &Inputs::new(inputs))?;
            outputs.first().map(|output| output.tensor).ok_or_else(|| t.mismatch("the denoiser predicts nothing".to_string()))
        })?;
        Ok(outputs)
    }
}

/// Whether a table has `rows` rows of a port's shape; tokens `[N, L, D]` may be any number.
fn fits(table: &[usize], rows: usize, port: &[usize]) -> bool {
    let axes = table.len() == port.len() && table.first() == Some(&rows);
    axes && (1..port.len()).all(|i| table[i] == port[i] || (port.len() == 3 && i == 1 && table[1] > 0))
}

/// Rows of `[V, ...]` by `[N]` labels: `[N, ...]`.
fn look_up(t: &mut Tape, rows: &Weight, labels: Tensor) -> Result<Tensor> {
    let mut shape = rows.dims().to_vec();
    let table = t.weight(rows);
    let table = t.reshape(table, &[shape[0], shape[1..].iter().product()])?;
    let found = t.embedding(table, labels)?;
    shape[0] = t.shape(labels)[0];
    t.reshape(found, &shape)
}

fn find(outputs: &[Output], name: &str) -> Option<Tensor> {
    outputs.iter().find(|output| output.name == name).map(|output| output.tensor)
}

/// scale x + shift, and no step when that is x.
fn affine(t: &mut Tape, x: Tensor, scale: f32, shift: f32) -> Result<Tensor> {
    if scale == 1.0 && shift == 0.0 { Ok(x) } else { t.activation(x, Function::Affine { scale, shift }) }
}

/// The single model in the folder `part` of `folder`.
pub fn load_part(folder: &Path, part: &str) -> Result<Box<dyn Model>> {
    recognise(&folder.join(part))?.load()
}

/// The parts of the denoiser's input that its channels leave no other choice for: `[latents]`, `[latents, hole]` or
/// `[latents, hole, masked image latents]`. None: they fit none of these.
pub fn unet_input(in_channels: usize, latent_channels: usize) -> Option<Vec<UNetInput>> {
    let all = [UNetInput::Latents, UNetInput::Hole, UNetInput::MaskedImageLatents];
    (1..=3).map(|parts| all[..parts].to_vec()).find(|parts| InpaintIndex::channels(parts, latent_channels) == in_channels)
}
