//! Class-conditional latent inpainting: an image and a hole in, the image with another lesion in the hole out.
//!
//! | symbol | here |
//! |---|---|
//! | N, H, W | batch, pixel rows and columns |
//! | h, w, C | latent rows, columns and channels |
//! | z0 | latents of the image, scaled |
//! | hole | 1 = repaint, 0 = known |
//!
//! 1. z0 = scale E(image), masked latents = scale E(image with `masked_fill` in the hole)
//! 2. x = noise, or q(z0, t_start) when strength < 1
//! 3. each step: out = UNet(`unet_input` of x, hole, masked latents; t, class), guided by the null class
//!    (Ho and Salimans 2022); x = DDIM step; known cells become q(z0, next t) with the same noise (Lugmayr et al. 2022, eq. 8)
//! 4. decoded = D(x / scale), clamped to [0, 1]
//!
//! Each item of a batch is a function of its own inputs alone.

use std::ops::ControlFlow;

use crate::base::{Array, DType, Error, Kind, Result};
use crate::diffusion::ddim::Schedule;
use crate::diffusion::region::{Region, composite, masked_image};
use crate::diffusion::scheduler::{Limit, Scheduler};
use crate::models::inpaint_model::{HolePixels, HoleToLatent, InpaintModel, UNetInput};
use crate::ops::ddim_step::{Coefficients, DdimStep, KnownRegion};
use crate::plan::{Session, Tape, Tensor};

/// Gives a plan a device. The caller knows which.
pub type Prepare<'a> = dyn FnMut(Tape) -> Result<Box<dyn Session>> + 'a;

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
    /// Whether steps take variance noise: eta > 0.
    pub stochastic: bool,
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
    /// Variance noise `[N, h, w, C]` of step k, asked for when the format is stochastic.
    pub variance_noise: &'a dyn Fn(usize) -> Result<Array>,
}

/// What became of a batch. Arrays are channels-last.
#[derive(Clone, Debug)]
pub struct Painted {
    /// `[N, H, W, 3]` in [0, 1]: the decoder's whole image.
    pub decoded: Array,
    /// `[N, H, W, 3]`: `decoded` in the hole, the image outside.
    pub output: Array,
    /// The pixel holes that were used: unions of whole latent cells.
    pub holes: Vec<Region>,
    /// Latents after each step, when asked for.
    pub latents: Vec<Array>,
}

/// Three sessions of one format: encode, one denoising step, decode.
pub struct Inpainter {
    format: Format,
    /// `[N, h, w, C]`.
    latent_shape: [usize; 4],
    null_class: u32,
    classes: usize,
    masked_fill: f32,
    hole_to_latent: HoleToLatent,
    hole_pixels: HolePixels,
    downscale: usize,
    encode: Box<dyn Session>,
    denoise: Box<dyn Session>,
    decode: Box<dyn Session>,
}

impl Inpainter {
    /// Records and prepares the three plans.
    pub fn new(model: &InpaintModel, scheduler: &Scheduler, format: Format, prepare: &mut Prepare) -> Result<Inpainter> {
        let downscale = model.vae.config.downscale;
        let multiple = downscale * model.unet.config.size_multiple();
        let Format { batch, height, width, .. } = format;
        if batch == 0 || height == 0 || width == 0 || !height.is_multiple_of(multiple) || !width.is_multiple_of(multiple) {
            let fact = format!("a batch of {batch} images of {width} x {height} pixels, expected at least one and multiples of {multiple}");
            return Err(Error::new(Kind::Shape, "image", fact));
        }
        if !format.guidance.is_finite() {
            return Err(Error::new(Kind::Usage, "--guidance", format!("{}, expected a number", format.guidance)));
        }
        let latent_shape = [batch, height / downscale, width / downscale, model.vae.config.latent_channels];
        Ok(Inpainter {
            format,
            latent_shape,
            null_class: model.index.null_class as u32,
            classes: model.index.class_names.len(),
            masked_fill: model.index.masked_fill,
            hole_to_latent: model.index.hole_to_latent,
            hole_pixels: model.index.hole_pixels,
            downscale,
            encode: prepare(encode_tape(model, &format)?)?,
            denoise: prepare(denoise_tape(model, scheduler, &format, latent_shape)?)?,
            decode: prepare(decode_tape(model, latent_shape)?)?,
        })
    }

    pub fn format(&self) -> &Format {
        &self.format
    }

    /// `[N, h, w, C]`.
    pub fn latent_shape(&self) -> [usize; 4] {
        self.latent_shape
    }

    /// Runs a batch through `schedule`. `keep_latents` reads the latents back after every step. `on_step` is told how many
    /// steps are done and may stop the run, which is then `Kind::Interrupted`. A value that is not finite is `Kind::Numeric`
    /// and names the first layer that made one.
    pub fn paint(&mut self, batch: &Batch, schedule: &Schedule, keep_latents: bool, on_step: &mut dyn FnMut(usize) -> ControlFlow<()>) -> Result<Painted> {
        self.check(batch)?;
        let cells: Vec<Region> = batch.holes.iter().map(|hole| self.cells(hole)).collect();
        let holes: Vec<Region> = cells.iter().map(|cells| self.pixels(cells)).collect();
        let z0 = self.encode(batch.image)?;
        let masked = per_image(batch.image, |i, image| masked_image(image, &holes[i], 3, self.masked_fill));
        let masked_latents = self.encode(&masked)?;
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
        if count(self.denoise.as_mut())? > 0 {
            self.start(batch, schedule, &z0)?;
            return Err(self.diagnose(batch, schedule)?);
        }
        let decoded = self.decode_last()?;
        let output = per_image(batch.image, |i, image| {
            let size = image.len();
            composite(image, &decoded.data[i * size..(i + 1) * size], &holes[i], 3)
        });
        Ok(Painted { decoded, output, holes, latents })
    }

    /// Latent cells of a pixel hole.
    fn cells(&self, hole: &Region) -> Region {
        match self.hole_to_latent {
            HoleToLatent::MaxPool => hole.max_pool(self.downscale),
        }
    }

    /// The pixels that are repainted for open latent cells.
    fn pixels(&self, cells: &Region) -> Region {
        match self.hole_pixels {
            HolePixels::LatentCell => cells.enlarge(self.downscale),
        }
    }

    fn encode(&mut self, image: &Array) -> Result<Array> {
        self.encode.write("image", &image.data)?;
        self.encode.run()?;
        if count(self.encode.as_mut())? > 0 {
            return Err(nonfinite("encoder", self.encode.as_mut())?);
        }
        self.encode.read("latents")
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
        let latents: Vec<f32> = match known {
            0.0 => batch.noise.data.clone(),
            _ => z0.data.iter().zip(&batch.noise.data).map(|(z, n)| known * z + noise * n).collect(),
        };
        self.denoise.write("latents", &latents)
    }

    /// Writes what is new in step `k`.
    fn set_step(&mut self, batch: &Batch, schedule: &Schedule, k: usize) -> Result<()> {
        self.denoise.write("timestep", &[schedule.timesteps[k] as f32])?;
        self.denoise.write("row", bytemuck::cast_slice(&schedule.rows[k..=k]))?;
        if self.format.stochastic {
            let noise = (batch.variance_noise)(k)?;
            self.denoise.write("variance_noise", &noise.data)?;
        }
        Ok(())
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

    /// Decodes the denoiser's latents.
    fn decode_last(&mut self) -> Result<Array> {
        let latents = self.denoise.read("latents_next")?;
        self.decode.write("latents", &latents.data)?;
        self.decode.run()?;
        if count(self.decode.as_mut())? > 0 {
            return Err(nonfinite("decoder", self.decode.as_mut())?);
        }
        let mut decoded = self.decode.read("decoded")?;
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

fn count(session: &mut dyn Session) -> Result<u32> {
    Ok(session.read("nonfinite")?.data.first().map_or(0, |v| v.to_bits()))
}

fn nonfinite(part: &str, session: &mut dyn Session) -> Result<Error> {
    let place = session.first_nonfinite()?.unwrap_or_else(|| part.to_string());
    Ok(Error::new(Kind::Numeric, place, format!("values that are not finite in the {part}")))
}

/// image `[N, H, W, 3]` -> latents `[N, h, w, C]`, scaled.
pub fn encode_tape(model: &InpaintModel, format: &Format) -> Result<Tape> {
    let mut t = Tape::new();
    let image = t.input("image", &[format.batch, format.height, format.width, 3], DType::F32);
    let latents = model.vae.encode(&mut t, image)?;
    let latents = t.affine(latents, model.index.scaling_factor, 0.0)?;
    finish(&mut t, "latents", latents)?;
    Ok(t)
}

/// latents `[N, h, w, C]`, scaled -> decoded `[N, H, W, 3]`, not yet clamped.
pub fn decode_tape(model: &InpaintModel, latent_shape: [usize; 4]) -> Result<Tape> {
    let mut t = Tape::new();
    let latents = t.input("latents", &latent_shape, DType::F32);
    let latents = t.affine(latents, 1.0 / model.index.scaling_factor, 0.0)?;
    let decoded = model.vae.decode(&mut t, latents)?;
    finish(&mut t, "decoded", decoded)?;
    Ok(t)
}

/// One step: guidance, DDIM, known cells. `latents_next` is carried into `latents`, so that steps follow each other on the device.
pub fn denoise_tape(model: &InpaintModel, scheduler: &Scheduler, format: &Format, latent_shape: [usize; 4]) -> Result<Tape> {
    let mut t = Tape::new();
    let [n, h, w, _] = latent_shape;
    let guided = format.guidance != 1.0;
    let input = |t: &mut Tape, name: &str| t.input(name, &latent_shape, DType::F32);
    let latents = input(&mut t, "latents");
    let hole = t.input("hole_latent", &[n, h, w, 1], DType::F32);
    let masked_latents = input(&mut t, "masked_latents");
    let known = KnownRegion { hole, z0: input(&mut t, "z0"), noise: input(&mut t, "noise") };
    let variance_noise = format.stochastic.then(|| input(&mut t, "variance_noise"));
    let timestep = t.input("timestep", &[1], DType::F32);
    let row = t.input("row", &[1, Coefficients::COLUMNS], DType::F32);
    let class_labels = t.input("class_labels", &[if guided { 2 * n } else { n }], DType::U32);

    let part = |part: &UNetInput| match part {
        UNetInput::Latents => latents,
        UNetInput::Hole => hole,
        UNetInput::MaskedImageLatents => masked_latents,
    };
    let parts: Vec<Tensor> = model.index.unet_input.iter().map(part).collect();
    let mut sample = parts[0];
    for &part in &parts[1..] {
        sample = t.concat(sample, part)?;
    }
    // Unconditional half first, then the conditional: one batch.
    let sample = if guided { t.repeat(sample, 2)? } else { sample };
    let output = t.scope("unet", |t| model.unet.forward(t, sample, timestep, Some(class_labels)))?;
    let step = ddim_step(scheduler, format);
    let row = match scheduler.limit {
        Limit::Threshold { ratio, max } => t.threshold_quantile(output, latents, row, &step, f64::from(ratio), max)?,
        _ => row,
    };
    let known = model.index.reimpose_known.then_some(&known);
    let next = t.scope("ddim_step", |t| t.ddim_step(output, latents, row, known, variance_noise, &step))?;
    t.carry(next, latents)?;
    finish(&mut t, "latents_next", next)?;
    Ok(t)
}

fn ddim_step(scheduler: &Scheduler, format: &Format) -> DdimStep {
    DdimStep {
        prediction: scheduler.prediction_type,
        guidance_scale: (format.guidance != 1.0).then_some(format.guidance),
        clip: match scheduler.limit {
            Limit::Clip { range } => Some(range),
            _ => None,
        },
        threshold: matches!(scheduler.limit, Limit::Threshold { .. }),
    }
}

/// Outputs `name` and the count of its values that are not finite.
fn finish(t: &mut Tape, name: &str, tensor: Tensor) -> Result<()> {
    let nonfinite = t.count_nonfinite(tensor)?;
    t.output(name, tensor);
    t.output("nonfinite", nonfinite);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::array::{psnr, relative_rms};
    use crate::base::rng;
    use crate::diffusion::ddim::Walk;
    use crate::exec::cpu::CpuSession;
    use crate::plan::{Options, Plan};
    use crate::weights::Store;
    use std::path::{Path, PathBuf};

    fn cpu(tape: Tape) -> Result<Box<dyn Session>> {
        Ok(Box::new(CpuSession::new(Plan::freeze(tape, &Options::default())?)))
    }

    fn tiny() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/inpaint-tiny")
    }

    struct Recorded {
        store: Store,
        walk: Walk,
        guidance: f32,
    }

    impl Recorded {
        fn open(path: &Path) -> Recorded {
            let store = Store::open(path).unwrap();
            let number = |name: &str| store.metadata()[name].parse::<f64>().unwrap();
            let walk = Walk { steps: number("steps") as usize, eta: number("eta"), strength: number("strength") };
            Recorded { walk, guidance: number("guidance") as f32, store }
        }

        fn array(&self, name: &str) -> Array {
            self.store.array(name).unwrap().to_channels_last()
        }

        fn holes(&self) -> Vec<Region> {
            let hole = self.array("hole");
            let [n, h, w, _] = hole.shape.nhwc().unwrap();
            (0..n).map(|i| Region::new(w, h, &hole.data[i * h * w..(i + 1) * h * w], |v| v > 0.5).unwrap()).collect()
        }
    }

    /// Runs a recorded trajectory on the CPU; the worst relative error of its latents and the PSNR of its output.
    fn replay(model: &InpaintModel, scheduler: &Scheduler, recorded: &Recorded) -> (f64, f64) {
        let (image, noise) = (recorded.array("image"), recorded.array("noise"));
        let [n, h, w, _] = image.shape.nhwc().unwrap();
        let format = Format { batch: n, height: h, width: w, guidance: recorded.guidance, stochastic: recorded.walk.eta > 0.0 };
        let mut inpainter = Inpainter::new(model, scheduler, format, &mut cpu).unwrap();
        let schedule = Schedule::new(scheduler, &recorded.walk).unwrap();
        assert_eq!(schedule.timesteps, recorded.store.indices("timesteps").unwrap());
        let variance_noise = |k: usize| Ok(recorded.array(&format!("variance_noise_{k}")));
        let class_labels = recorded.store.indices("class_labels").unwrap();
        let holes = recorded.holes();
        let batch = Batch { image: &image, holes: &holes, class_labels: &class_labels, noise: &noise, variance_noise: &variance_noise };
        let mut steps = vec![];
        let mut on_step = |k| {
            steps.push(k);
            ControlFlow::Continue(())
        };
        let painted = inpainter.paint(&batch, &schedule, true, &mut on_step).unwrap();
        assert_eq!(steps, (1..=schedule.rows.len()).collect::<Vec<_>>());
        assert_eq!(painted.holes, holes, "the recorded hole is a union of cells already");
        let error = |k: usize| relative_rms(&painted.latents[k].data, &recorded.array(&format!("latents_{k}")).data);
        let worst = (0..schedule.rows.len()).map(error).fold(0.0, f64::max);
        assert!(psnr(&painted.decoded.data, &recorded.array("decoded").data, 1.0) > 50.0);
        for (i, v) in painted.output.data.iter().enumerate() {
            let pixel = i / 3;
            assert!(holes[pixel / (h * w)].open[pixel % (h * w)] || v.to_bits() == image.data[i].to_bits(), "a known pixel changed");
        }
        (worst, psnr(&painted.output.data, &recorded.array("output").data, 1.0))
    }

    #[test]
    fn tiny_model_follows_diffusers() {
        let model = InpaintModel::load(&tiny()).unwrap();
        let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
        for file in ["io", "io-strength"] {
            let (latents, output) = replay(&model, &scheduler, &Recorded::open(&tiny().join(format!("{file}.safetensors"))));
            assert!(latents < 1e-4 && output > 80.0, "{file}: latents {latents:e}, output {output} dB");
        }
    }

    /// The real model on real images, where the folder beside the project has them.
    #[test]
    fn reference_model_follows_its_recorded_trajectories() {
        let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference");
        if !reference.join("golden/inpaint-seed0.safetensors").exists() {
            println!("skipped: ../shared absent");
            return;
        }
        let model = InpaintModel::load(&reference.join("inpaint-ham128")).unwrap();
        let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
        for file in ["inpaint-seed0", "inpaint-seed1-eta", "inpaint-seed2-strength"] {
            let (latents, output) = replay(&model, &scheduler, &Recorded::open(&reference.join(format!("golden/{file}.safetensors"))));
            println!("{file}: latents {latents:.1e}, output {output:.1} dB");
            assert!(latents < 1e-3 && output > 50.0, "{file}: latents {latents:e}, output {output} dB");
        }
    }

    /// Inputs of a batch whose item i is a function of `keys[i]` alone.
    fn painted(inpainter: &mut Inpainter, schedule: &Schedule, keys: &[u64]) -> Result<Painted> {
        let [n, h, w, c] = inpainter.latent_shape();
        let Format { height, width, .. } = *inpainter.format();
        let normals = |step: u64| {
            let data = keys.iter().flat_map(|&key| rng::normal(1, key, step, h * w * c)).collect();
            Array::new(&[n, h, w, c], data)
        };
        let image = keys.iter().flat_map(|&key| rng::uniform(2, key, 0, height * width * 3)).collect();
        let hole = |&key: &u64| Region { width, height, open: (0..width * height).map(|i| i % width > 12 && (i / width) as u64 > key).collect() };
        let batch = Batch {
            image: &Array::new(&[n, height, width, 3], image)?,
            holes: &keys.iter().map(hole).collect::<Vec<_>>(),
            class_labels: &keys.iter().map(|key| (key % 3) as u32).collect::<Vec<_>>(),
            noise: &normals(rng::INITIAL_NOISE)?,
            variance_noise: &|k| normals(k as u64),
        };
        inpainter.paint(&batch, schedule, true, &mut |_| ControlFlow::Continue(()))
    }

    fn tiny_format(batch: usize) -> Format {
        Format { batch, height: 32, width: 32, guidance: 2.0, stochastic: true }
    }

    const WALK: Walk = Walk { steps: 4, eta: 0.5, strength: 1.0 };

    /// Law: row k of a batch is that row alone, and a session that was used is as good as new.
    #[test]
    fn an_item_does_not_depend_on_its_batch() {
        let model = InpaintModel::load(&tiny()).unwrap();
        let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
        let schedule = Schedule::new(&scheduler, &WALK).unwrap();
        let mut three = Inpainter::new(&model, &scheduler, tiny_format(3), &mut cpu).unwrap();
        let mut one = Inpainter::new(&model, &scheduler, tiny_format(1), &mut cpu).unwrap();
        let together = painted(&mut three, &schedule, &[4, 5, 6]).unwrap();
        assert_eq!(painted(&mut three, &schedule, &[4, 5, 6]).unwrap().output, together.output, "two runs differ");
        for (i, key) in [4, 5, 6].into_iter().enumerate() {
            let alone = painted(&mut one, &schedule, &[key]).unwrap();
            let error = relative_rms(&together.output.rows(i, i + 1).data, &alone.output.data);
            assert!(error < 1e-5, "row {i}: {error:e}");
        }
    }

    /// Guidance 1 asks for the class alone; it must agree with the guided form at a scale just beside it.
    #[test]
    fn guidance_one_is_the_conditional_model() {
        let model = InpaintModel::load(&tiny()).unwrap();
        let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
        let schedule = Schedule::new(&scheduler, &WALK).unwrap();
        let run = |guidance: f32| {
            let mut inpainter = Inpainter::new(&model, &scheduler, Format { guidance, ..tiny_format(2) }, &mut cpu).unwrap();
            painted(&mut inpainter, &schedule, &[4, 5]).unwrap().output
        };
        let (one, beside, two) = (run(1.0), run(1.000_001), run(2.0));
        assert!(relative_rms(&beside.data, &one.data) < 1e-4);
        assert!(relative_rms(&two.data, &one.data) > 1e-4, "guidance has no effect");
    }

    #[test]
    fn a_run_can_be_stopped() {
        let model = InpaintModel::load(&tiny()).unwrap();
        let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
        let schedule = Schedule::new(&scheduler, &Walk { eta: 0.0, ..WALK }).unwrap();
        let mut inpainter = Inpainter::new(&model, &scheduler, Format { stochastic: false, ..tiny_format(1) }, &mut cpu).unwrap();
        let (image, noise) = (Array::zeros(&[1, 32, 32, 3]), Array::zeros(&[1, 4, 4, 4]));
        let holes = [Region { width: 32, height: 32, open: vec![true; 1024] }];
        let batch = Batch { image: &image, holes: &holes, class_labels: &[0], noise: &noise, variance_noise: &|_| Ok(Array::zeros(&[0])) };
        let mut seen = 0;
        let mut on_step = |k| {
            seen = k;
            if k == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let error = inpainter.paint(&batch, &schedule, false, &mut on_step).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str(), seen), (Kind::Interrupted, "stopped after step 2 of 4", 2));
    }

    #[test]
    fn values_that_are_not_finite_name_their_layer() {
        let model = InpaintModel::load(&tiny()).unwrap();
        let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
        let schedule = Schedule::new(&scheduler, &Walk { eta: 0.0, ..WALK }).unwrap();
        let mut inpainter = Inpainter::new(&model, &scheduler, Format { stochastic: false, ..tiny_format(1) }, &mut cpu).unwrap();
        let holes = [Region { width: 32, height: 32, open: (0..1024).map(|i| i > 512).collect() }];
        let mut run = |image: f32, noise: f32| {
            let image = Array::new(&[1, 32, 32, 3], vec![image; 3072]).unwrap();
            let noise = Array::new(&[1, 4, 4, 4], vec![noise; 64]).unwrap();
            let batch = Batch { image: &image, holes: &holes, class_labels: &[0], noise: &noise, variance_noise: &|_| Ok(Array::zeros(&[0])) };
            inpainter.paint(&batch, &schedule, false, &mut |_| ControlFlow::Continue(()))
        };
        let noise = run(0.5, f32::NAN).unwrap_err();
        assert_eq!(noise.kind(), Kind::Numeric);
        assert!(noise.to_string().contains("not finite in step 0, timestep 751"), "{noise}");
        let image = run(f32::INFINITY, 0.0).unwrap_err();
        assert!(image.kind() == Kind::Numeric && image.to_string().contains("not finite in the encoder"), "{image}");
        run(0.5, 0.0).unwrap();
    }

    #[test]
    fn wrong_batches_are_named() {
        let model = InpaintModel::load(&tiny()).unwrap();
        let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
        let schedule = Schedule::new(&scheduler, &WALK).unwrap();
        for (height, width, batch) in [(30, 32, 1), (0, 32, 1), (32, 32, 0)] {
            let error = Inpainter::new(&model, &scheduler, Format { height, width, ..tiny_format(batch) }, &mut cpu).err().unwrap();
            assert!(error.to_string().starts_with("image: a batch of"), "{error}");
        }
        let mut inpainter = Inpainter::new(&model, &scheduler, tiny_format(1), &mut cpu).unwrap();
        let good = (vec![1usize, 32, 32, 3], vec![1usize, 4, 4, 4], 32, vec![0u32]);
        let mut run = |(image, noise, hole, labels): (Vec<usize>, Vec<usize>, usize, Vec<u32>)| {
            let holes = [Region { width: hole, height: 32, open: vec![true; hole * 32] }];
            let (image, noise) = (Array::zeros(&image), Array::zeros(&noise));
            let batch = Batch { image: &image, holes: &holes, class_labels: &labels, noise: &noise, variance_noise: &|_| Ok(Array::zeros(&[1, 4, 4, 4])) };
            inpainter.paint(&batch, &schedule, false, &mut |_| ControlFlow::Continue(())).map(|_| ())
        };
        run(good.clone()).unwrap();
        for (wrong, want) in [
            ((vec![1, 32, 40, 3], good.1.clone(), 32, good.3.clone()), "image: [1, 3, 32, 40], expected [1, 3, 32, 32]"),
            ((good.0.clone(), vec![1, 4, 4, 3], 32, good.3.clone()), "noise: [1, 3, 4, 4], expected [1, 4, 4, 4]"),
            ((good.0.clone(), good.1.clone(), 40, good.3.clone()), "hole: 40 x 32, expected 32 x 32"),
            ((good.0.clone(), good.1.clone(), 32, vec![9]), "class_labels: 9, expected 0 to 2"),
            ((good.0.clone(), good.1.clone(), 32, vec![0, 1]), "hole: 1 holes and 2 class labels, expected 1 of each"),
        ] {
            assert_eq!(run(wrong).unwrap_err().to_string(), want);
        }
    }
}
