//! Class-conditional latent inpainting: an image and a hole in, the image with another lesion in the hole out.
//!
//! | symbol | here |
//! |---|---|
//! | N, H, W | batch, pixel rows and columns |
//! | h, w, C | latent rows, columns and channels |
//! | z0 | latents of the image, scaled |
//! | hole | 1 = repaint, 0 = known |
//!
//! 1. z0 = scale E(image), masked latents = scale E(image with `masked_fill` in the hole); where E gives a Gaussian, its mode or a
//!    sample of it
//! 2. x = noise, or q(z0, t_start) when strength < 1
//! 3. each step: out = UNet(`unet_input` of x, hole, masked latents; t, class), guided by the null class
//!    (Ho and Salimans 2022); x = the scheduler's step; known cells become q(z0, next t) with the same noise (Lugmayr et al. 2022, eq. 8)
//! 4. decoded = D(x / scale), clamped to [0, 1]
//!
//! Each item of a batch is a function of its own inputs alone.

use std::ops::ControlFlow;

use crate::base::{Array, DType, Error, Kind, Result};
use crate::diffusion::posterior::{self, Posterior};
use crate::diffusion::region::{Region, composite, masked_image};
use crate::diffusion::schedule::{Schedule, StepInputs};
use crate::diffusion::scheduler::Scheduler;
pub use crate::diffusion::tiles::Prepare;
use crate::diffusion::tiles::{Patchwork, Tiles, count_nonfinite};
use crate::models::InpaintModel;
use crate::models::inpaint_index::{HolePixels, HoleToLatent, UNetInput};
use crate::ops::ddim_step::KnownRegion;
use crate::plan::{Cost, Session, Tape, Tensor};

/// What the plans are made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    /// N, at least 1.
    pub batch: usize,
    /// Pixels; multiples of what the model halves.
    pub height: usize,
    pub width: usize,
    /// Guidance scale g: out = null + g (class - null). At 1 only the class is asked, in half the work.
    pub guidance: f32,
    /// Whether steps take variance noise: [`Scheduler::is_stochastic`].
    pub stochastic: bool,
    /// Which latents of the encoder's Gaussian are the image's.
    pub posterior: Posterior,
    /// How the encoder and the decoder are cut.
    pub tiles: Tiles,
}

/// One batch. Arrays are channels-last.
pub struct Batch<'a> {
    /// `[N, H, W, 3]` in [0, 1].
    pub image: &'a Array,
    /// N pixel holes of W by H, already dilated.
    pub holes: &'a [Region],
    /// Class labels, N.
    pub class_labels: &'a [u32],
    /// `[N, h, w, C]`, standard normal.
    pub noise: &'a Array,
    /// Variance noise `[N, h, w, C]` of step k, asked for where the step takes some.
    pub variance_noise: &'a dyn Fn(usize) -> Result<Array>,
    /// `[N, h, w, C]`, standard normal: what samples the posterior of the image and of the masked image; None for its mode.
    pub posterior_noise: Option<[&'a Array; 2]>,
}

/// What became of a batch. Arrays are channels-last.
#[derive(Clone, Debug)]
pub struct Painted {
    /// `[N, H, W, 3]` in [0, 1]: the decoder's whole image.
    pub decoded: Array,
    /// `[N, H, W, 3]`: `decoded` in the hole, the image outside.
    pub output: Array,
    /// The pixel holes that were used: unions of whole latent cells, or the masks.
    pub holes: Vec<Region>,
    /// `[N, h, w, C]`: z0, the image's own latents, scaled.
    pub image_latents: Array,
    /// Latents after each step, when asked for.
    pub latents: Vec<Array>,
}

/// Three parts of one format: encode, one denoising step, decode. The first and the last are cut where they exceed a limit.
pub struct Inpainter {
    format: Format,
    /// `[N, h, w, C]`.
    latent_shape: [usize; 4],
    /// Tensors of that shape in the state, the latents first.
    slots: usize,
    scales_input: bool,
    null_class: u32,
    classes: usize,
    masked_fill: f32,
    hole_to_latent: HoleToLatent,
    hole_pixels: HolePixels,
    downscale: usize,
    /// The denoiser's latents are the encoder's times the first plus the second.
    latent_affine: [f32; 2],
    encode: Patchwork,
    denoise: Box<dyn Session>,
    decode: Patchwork,
}

impl Inpainter {
    /// Records and prepares the three plans.
    pub fn new(model: &InpaintModel, scheduler: &Scheduler, format: Format, prepare: &mut Prepare) -> Result<Inpainter> {
        let downscale = model.autoencoder.downscale;
        let multiple = model.size_multiple();
        let Format { batch, height, width, .. } = format;
        if batch == 0 || height == 0 || width == 0 || !height.is_multiple_of(multiple) || !width.is_multiple_of(multiple) {
            let fact = format!("a batch of {batch} images of {width} x {height} pixels, expected at least one and multiples of {multiple}");
            return Err(Error::new(Kind::Shape, "image", fact));
        }
        if !format.guidance.is_finite() {
            return Err(Error::new(Kind::Usage, "--guidance", format!("{}, expected a number", format.guidance)));
        }
        let latent_shape = [batch, height / downscale, width / downscale, model.autoencoder.latent_channels];
        let cells = [height / downscale, width / downscale];
        let tiles = format.tiles;
        let mut encode_part = |batch: usize, [h, w]: [usize; 2]| encode_tape(model, &Format { batch, height: h * downscale, width: w * downscale, ..format });
        let mut decode_part = |batch: usize, [h, w]: [usize; 2]| decode_tape(model, [batch, h, w, model.autoencoder.latent_channels]);
        Ok(Inpainter {
            format,
            latent_shape,
            slots: scheduler.slots(),
            scales_input: scheduler.scales_input(),
            null_class: model.index.null_class as u32,
            classes: model.index.class_names.len(),
            masked_fill: model.index.masked_fill,
            hole_to_latent: model.index.hole_to_latent,
            hole_pixels: model.index.hole_pixels,
            downscale,
            latent_affine: model.latent_affine(),
            encode: Patchwork::new(batch, cells, tiles, downscale, &mut encode_part, prepare)?,
            denoise: prepare(denoise_tape(model, scheduler, &format, latent_shape)?)?,
            decode: Patchwork::new(batch, cells, tiles, downscale, &mut decode_part, prepare)?,
        })
    }

    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Pixels of a latent cell's side.
    pub fn downscale(&self) -> usize {
        self.downscale
    }

    /// `[N, h, w, C]`.
    pub fn latent_shape(&self) -> [usize; 4] {
        self.latent_shape
    }

    /// How the encoder and the decoder are cut, where the whole does not fit the device.
    pub fn notes(&self) -> Vec<String> {
        let parts = [("encode", &self.encode), ("decode", &self.decode)];
        parts.iter().filter_map(|(name, part)| part.note().map(|note| format!("{name} {note}"))).collect()
    }

    /// Device memory of the plans that encode, denoise and decode, in bytes.
    pub fn memory(&self) -> [u64; 3] {
        let of = |part: &Patchwork| part.sessions().map(|session| session.plan().peak_bytes()).sum();
        [of(&self.encode), self.denoise.plan().peak_bytes(), of(&self.decode)]
    }

    /// Work of one encoding, one denoising step and one decoding of the batch.
    pub fn costs(&self) -> [Cost; 3] {
        [self.encode.cost(), self.denoise.plan().tape.total_cost(), self.decode.cost()]
    }

    /// What the plans were made of.
    pub fn tapes(&self) -> impl Iterator<Item = &Tape> {
        self.encode.sessions().chain([self.denoise.as_ref()]).chain(self.decode.sessions()).map(|session| &session.plan().tape)
    }

    /// Runs a batch through `schedule`. `keep_latents` reads the latents back after every step. `on_step` is told how many
    /// steps are done and may stop the run, which is then `Kind::Interrupted`. A value that is not finite is `Kind::Numeric`
    /// and names the first layer that made one.
    pub fn paint(&mut self, batch: &Batch, schedule: &Schedule, keep_latents: bool, on_step: &mut dyn FnMut(usize) -> ControlFlow<()>) -> Result<Painted> {
        self.check(batch)?;
        let cells: Vec<Region> = batch.holes.iter().map(|hole| self.cells(hole)).collect();
        let holes: Vec<Region> = batch.holes.iter().zip(&cells).map(|(hole, cells)| self.pixels(hole, cells)).collect();
        let [noise, masked_noise] = batch.posterior_noise.map_or([None; 2], |noises| noises.map(Some));
        let z0 = self.encode(batch.image, noise)?;
        let masked = per_image(batch.image, |i, image| masked_image(image, &holes[i], 3, self.masked_fill));
        let masked_latents = self.encode(&masked, masked_noise)?;
        self.feed(batch, &z0, &masked_latents, &cells)?;
        let mut latents = Vec::new();
        self.start(batch, schedule, &z0)?;
        for k in 0..schedule.rows.len() {
            self.set_step(batch, schedule, k)?;
            self.denoise.run()?;
            if keep_latents {
                latents.push(self.denoise.read("latents_next")?);
            }
            if on_step(k + 1).is_break() {
                return Err(Error::new(Kind::Interrupted, "", format!("stopped after step {} of {}", k + 1, schedule.rows.len())));
            }
        }
        if count_nonfinite(self.denoise.as_mut())? > 0 {
            self.start(batch, schedule, &z0)?;
            return Err(self.diagnose(batch, schedule)?);
        }
        let last = self.denoise.read("latents_next")?;
        let decoded = self.decode(&last)?;
        let output = per_image(batch.image, |i, image| {
            let size = image.len();
            composite(image, &decoded.data[i * size..(i + 1) * size], &holes[i], 3)
        });
        Ok(Painted { decoded, output, holes, image_latents: z0, latents })
    }

    /// Latent cells of a pixel hole.
    fn cells(&self, hole: &Region) -> Region {
        match self.hole_to_latent {
            HoleToLatent::MaxPool => hole.max_pool(self.downscale),
            HoleToLatent::Nearest => hole.nearest(self.downscale),
        }
    }

    /// The pixels that are repainted.
    fn pixels(&self, hole: &Region, cells: &Region) -> Region {
        match self.hole_pixels {
            HolePixels::Mask => hole.clone(),
            HolePixels::LatentCell => cells.enlarge(self.downscale),
        }
    }

    /// image `[N, H, W, 3]` -> `[N, h, w, C]`, scaled: the posterior's mode, or a sample of it with `noise`.
    fn encode(&mut self, image: &Array, noise: Option<&Array>) -> Result<Array> {
        let nothing = || Error::new(Kind::Shape, "encoder", "it gives no latents");
        match noise {
            None => self.encode.run("encoder", &[("image", image)], &["latents"])?.into_iter().next().ok_or_else(nothing),
            Some(noise) => {
                let moments = self.encode.run("encoder", &[("image", image)], &MOMENTS)?;
                let [mean, logvar] = <[Array; 2]>::try_from(moments).map_err(|_| nothing())?;
                let mut latents = posterior::sample(&mean, &logvar, noise)?;
                let [scale, shift] = self.latent_affine;
                latents.data.iter_mut().for_each(|v| *v = scale * *v + shift);
                Ok(latents)
            }
        }
    }

    /// Writes what stays the same in all steps.
    fn feed(&mut self, batch: &Batch, z0: &Array, masked_latents: &Array, cells: &[Region]) -> Result<()> {
        let hole: Vec<f32> = cells.iter().flat_map(Region::values).collect();
        let mut labels = batch.class_labels.to_vec();
        if self.format.guidance != 1.0 {
            labels = vec![self.null_class; labels.len()].into_iter().chain(labels).collect();
        }
        let session = self.denoise.as_mut();
        session.write("hole_latent", &hole)?;
        session.write("masked_latents", &masked_latents.data)?;
        session.write("z0", &z0.data)?;
        session.write("noise", &batch.noise.data)?;
        session.write_indices("class_labels", &labels)
    }

    /// Writes the latents before the first step.
    fn start(&mut self, batch: &Batch, schedule: &Schedule, z0: &Array) -> Result<()> {
        let (known, noise) = schedule.start;
        let mut state: Vec<f32> = match (known, noise) {
            (0.0, 1.0) => batch.noise.data.clone(),
            _ => z0.data.iter().zip(&batch.noise.data).map(|(z, n)| known * z + noise * n).collect(),
        };
        state.resize(self.slots * state.len(), 0.0);
        self.denoise.write("state", &state)
    }

    /// Writes what is new in step `k`.
    fn set_step(&mut self, batch: &Batch, schedule: &Schedule, k: usize) -> Result<()> {
        self.denoise.write("timestep", &[schedule.timesteps[k]])?;
        self.denoise.write("row", &schedule.rows[k])?;
        if self.scales_input {
            self.denoise.write("input_scale", &[schedule.input_scales[k]])?;
        }
        match (self.format.stochastic, schedule.takes_noise[k]) {
            (true, true) => self.denoise.write("variance_noise", &(batch.variance_noise)(k)?.data),
            (true, false) => self.denoise.write("variance_noise", &vec![0.0; batch.noise.data.len()]),
            (false, _) => Ok(()),
        }
    }

    /// Walks from the start again, step by step and layer by layer, to the first value that is not finite.
    fn diagnose(&mut self, batch: &Batch, schedule: &Schedule) -> Result<Error> {
        for k in 0..schedule.rows.len() {
            self.set_step(batch, schedule, k)?;
            if let Some(place) = self.denoise.first_nonfinite()? {
                return Ok(Error::new(Kind::Numeric, place, format!("values that are not finite in step {k}, timestep {}", schedule.timesteps[k])));
            }
            self.denoise.run()?;
        }
        Ok(Error::new(Kind::Numeric, "latents", "values that are not finite, which a second run did not show"))
    }

    /// Scaled latents `[N, h, w, C]` -> `[N, H, W, 3]` in [0, 1].
    pub fn decode(&mut self, latents: &Array) -> Result<Array> {
        let arrays = self.decode.run("decoder", &[("latents", latents)], &["decoded"])?;
        let mut decoded = arrays.into_iter().next().ok_or_else(|| Error::new(Kind::Shape, "decoder", "it gives no image"))?;
        decoded.data.iter_mut().for_each(|v| *v = v.clamp(0.0, 1.0));
        Ok(decoded)
    }

    fn check(&self, batch: &Batch) -> Result<()> {
        let Format { batch: n, height, width, .. } = self.format;
        let wrong = |place: &str, found: String, expected: String| Err(Error::new(Kind::Shape, place, format!("{found}, expected {expected}")));
        if batch.image.dims() != [n, height, width, 3] {
            let first = batch.image.to_channels_first();
            return wrong("image", format!("{:?}", first.dims()), format!("[{n}, 3, {height}, {width}]"));
        }
        if batch.noise.dims() != self.latent_shape {
            let [n, h, w, c] = self.latent_shape;
            return wrong("noise", format!("{:?}", batch.noise.to_channels_first().dims()), format!("[{n}, {c}, {h}, {w}]"));
        }
        if batch.holes.len() != n || batch.class_labels.len() != n {
            return wrong("hole", format!("{} holes and {} class labels", batch.holes.len(), batch.class_labels.len()), format!("{n} of each"));
        }
        if let Some(hole) = batch.holes.iter().find(|hole| (hole.width, hole.height) != (width, height)) {
            return wrong("hole", format!("{} x {}", hole.width, hole.height), format!("{width} x {height}"));
        }
        if batch.posterior_noise.is_some() != (self.format.posterior == Posterior::Sample) {
            let found = if batch.posterior_noise.is_some() { "given" } else { "none" };
            return wrong("posterior_noise", found.to_string(), format!("what --posterior {} takes", self.format.posterior.name()));
        }
        let [n, h, w, c] = self.latent_shape;
        let posterior_noise = batch.posterior_noise.into_iter().flatten();
        if let Some(noise) = posterior_noise.clone().find(|noise| noise.dims() != self.latent_shape) {
            return wrong("posterior_noise", format!("{:?}", noise.to_channels_first().dims()), format!("[{n}, {c}, {h}, {w}]"));
        }
        let given = [("image", batch.image), ("noise", batch.noise)].into_iter().chain(posterior_noise.map(|noise| ("posterior_noise", noise)));
        for (place, values) in given {
            if let Some(value) = values.data.iter().find(|v| !v.is_finite()) {
                return Err(Error::new(Kind::Numeric, place, format!("holds {value}, expected finite values")));
            }
        }
        match batch.class_labels.iter().find(|&&label| label as usize >= self.classes && label != self.null_class) {
            Some(label) => wrong("class_labels", label.to_string(), format!("0 to {}", self.classes - 1)),
            None => Ok(()),
        }
    }
}

/// A new array of the same shape, image by image.
fn per_image(images: &Array, f: impl Fn(usize, &[f32]) -> Vec<f32>) -> Array {
    let size = images.data.len() / images.dims()[0].max(1);
    Array { shape: images.shape.clone(), data: images.data.chunks(size.max(1)).enumerate().flat_map(|(i, image)| f(i, image)).collect() }
}

/// The outputs of an encoder whose posterior is sampled.
const MOMENTS: [&str; 2] = ["latent_dist_mean", "latent_dist_logvar"];

/// image `[N, H, W, 3]` -> latents `[N, h, w, C]`, scaled; where the posterior is sampled, its mean and logarithm of the variance.
pub fn encode_tape(model: &InpaintModel, format: &Format) -> Result<Tape> {
    let mut t = Tape::new();
    let image = t.input("image", &[format.batch, format.height, format.width, 3], DType::F32);
    if format.posterior == Posterior::Sample {
        let moments = model.encode_moments(&mut t, image)?;
        MOMENTS.iter().zip(moments).for_each(|(name, tensor)| t.output(name, tensor));
        return Ok(t);
    }
    let latents = model.encode(&mut t, image)?;
    finish(&mut t, "latents", latents)?;
    Ok(t)
}

/// latents `[N, h, w, C]`, scaled -> decoded `[N, H, W, 3]`, not yet clamped.
pub fn decode_tape(model: &InpaintModel, latent_shape: [usize; 4]) -> Result<Tape> {
    let mut t = Tape::new();
    let latents = t.input("latents", &latent_shape, DType::F32);
    let decoded = model.decode(&mut t, latents)?;
    finish(&mut t, "decoded", decoded)?;
    Ok(t)
}

/// One step: guidance, solver, known cells. The state after it is carried into `state`, so that steps follow each other on the
/// device; `latents_next` is its first slot.
pub fn denoise_tape(model: &InpaintModel, scheduler: &Scheduler, format: &Format, latent_shape: [usize; 4]) -> Result<Tape> {
    let mut t = Tape::new();
    let [n, h, w, c] = latent_shape;
    let guided = format.guidance != 1.0;
    let input = |t: &mut Tape, name: &str| t.input(name, &latent_shape, DType::F32);
    let state = t.input("state", &[scheduler.slots() * n, h, w, c], DType::F32);
    let hole = t.input("hole_latent", &[n, h, w, 1], DType::F32);
    let masked_latents = input(&mut t, "masked_latents");
    let known = KnownRegion { hole, z0: input(&mut t, "z0"), noise: input(&mut t, "noise") };
    let variance_noise = format.stochastic.then(|| input(&mut t, "variance_noise"));
    let timestep = t.input("timestep", &[1], DType::F32);
    let row = t.input("row", &[1, scheduler.columns()], DType::F32);
    let class_labels = t.input("class_labels", &[if guided { 2 * n } else { n }], DType::U32);
    let input_scale = scheduler.scales_input().then(|| t.input("input_scale", &[1, 1, 1, 1], DType::F32));

    let latents = t.slice(state, 0, 0, n)?;
    let latents = input_scale.map_or(Ok(latents), |scale| t.mul(latents, scale))?;
    let part = |part: &UNetInput| match part {
        UNetInput::Latents => latents,
        UNetInput::Hole => hole,
        UNetInput::MaskedImageLatents => masked_latents,
    };
    let parts: Vec<Tensor> = model.index.unet_input.iter().map(part).collect();
    let sample = t.scope("unet_input", |t| {
        let sample = parts[1..].iter().try_fold(parts[0], |sample, &part| t.concat(sample, part))?;
        // Unconditional half first, then the conditional: one batch.
        if guided { t.repeat(sample, 2) } else { Ok(sample) }
    })?;
    let output = model.predict(&mut t, sample, timestep, class_labels)?;
    let inputs = StepInputs { state, row, known: model.index.reimpose_known.then_some(&known), variance_noise };
    let next = scheduler.record_step(&mut t, output, &inputs, guided.then_some(format.guidance))?;
    t.carry(next, state)?;
    let nonfinite = t.count_nonfinite(next)?;
    let latents = t.slice(next, 0, 0, n)?;
    t.output("latents_next", latents);
    t.output("nonfinite", nonfinite);
    Ok(t)
}

/// Outputs `name` and the count of its values that are not finite.
fn finish(t: &mut Tape, name: &str, tensor: Tensor) -> Result<()> {
    let nonfinite = t.count_nonfinite(tensor)?;
    t.output(name, tensor);
    t.output("nonfinite", nonfinite);
    Ok(())
}
