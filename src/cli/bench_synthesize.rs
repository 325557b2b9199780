//! `naevus bench synthesize`: whole images, from pixels to pixels.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::base::array::relative_rms;
use crate::base::{Array, Error, Kind, Result, rng};
use crate::diffusion::inpaint::{Batch, Format, Inpainter};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::region::Region;
use crate::diffusion::tiles::Tiles;
use crate::diffusion::{Schedule, Scheduler, Walk};
use crate::driver::conditioning::Conditioning;
use crate::exec::Device;
use crate::exec::bench::{Row, Spread, Warning, model_tolerance, twins_error, warnings};
use crate::models::InpaintModel;
use crate::plan::{Cost, Options, Tape, Timer};

/// As `synthesize` has it.
const GUIDANCE: f32 = 3.0;

/// One batch through encoder, `steps` denoising steps with guidance, and decoder, and its steps alone. On a GPU a walk of one step is
/// first compared with the CPU executor's: a long one lets roundings grow.
pub(super) fn rows(device: &Device, model: &Path, batch: usize, steps: usize, budget: Duration) -> Result<Vec<Row>> {
    let model = super::conditioning::load(device, (model, &[]), &Conditioning::default(), None)?;
    let scheduler = Scheduler::read(&model.index.scheduler_config)?;
    let walk = |steps| Schedule::new(&scheduler, &Walk { steps, eta: 0.0, strength: 1.0 });
    let size = model.index.image_size;
    let stochastic = scheduler.is_stochastic(0.0);
    let format = Format { batch, height: size, width: size, guidance: GUIDANCE, stochastic, posterior: Posterior::Mode, tiles: Tiles::Auto };
    let on = |device: &Device| Inpainter::new(&model, &scheduler, format, &mut |tape: Tape| device.prepare(tape, &Options::default()));
    let mut inpainter = on(device)?;
    inpainter.notes().iter().for_each(|note| eprintln!("note: {note}"));
    let inputs = Inputs::new(&model, inpainter.latent_shape(), size)?;
    let first = inputs.paint(&mut inpainter, &walk(1)?, &mut |_| {})?;
    let error = match device {
        Device::Cpu => inpainter.tapes().map(twins_error).fold(0.0, f64::max),
        Device::Gpu(_) => relative_rms(&first.data, &inputs.paint(&mut on(&Device::Cpu)?, &walk(1)?, &mut |_| {})?.data),
    };
    let (schedule, begin) = (walk(steps)?, Instant::now());
    let (mut whole_ms, mut step_ms) = (Vec::new(), Vec::new());
    while whole_ms.is_empty() || (whole_ms.len() < 5 && begin.elapsed() < 10 * budget) || (begin.elapsed() < budget && whole_ms.len() < 50) {
        let (start, mut ends) = (Instant::now(), Vec::new());
        inputs.paint(&mut inpainter, &schedule, &mut |_| ends.push(Instant::now()))?;
        whole_ms.push(start.elapsed().as_secs_f64() * 1e3);
        // Two runs are in flight on a GPU: from step to step counts, not from start to end of one.
        if let [first, .., last] = ends[..] {
            step_ms.push(last.duration_since(first).as_secs_f64() * 1e3 / (ends.len() - 1) as f64);
        }
    }
    let [encode, step, decode] = inpainter.costs();
    let whole = sum(&[(2, encode), (schedule.rows.len() as u64, step), (1, decode)]);
    let row = |name: &str, shape: String, samples: &[f64], cost: Cost| {
        let spread = Spread::of(samples);
        let proved = error <= model_tolerance(device.precision());
        let mut warnings = warnings(&spread, samples, Timer::Wall);
        if !proved {
            warnings.push(Warning::NotProved(format!("{error:.1e} of rms from the CPU executor after one step")));
        }
        let precision = device.precision();
        let (name, variant) = (format!("synthesize.{name}"), "plan".to_string());
        Row { name, variant, shape, precision, spread, timer: Timer::Wall, cost, proved, max_rel_err: error, warnings, is_layer: false }
    };
    let images = row("batch", format!("{batch} images of {size} x {size}, {} steps", schedule.rows.len()), &whole_ms, whole);
    let steps = (!step_ms.is_empty()).then(|| row("step", format!("{:?}", inpainter.latent_shape()), &step_ms, step));
    Ok([images].into_iter().chain(steps).collect())
}

fn sum(parts: &[(u64, Cost)]) -> Cost {
    let add = |all: Cost, &(times, cost): &(u64, Cost)| Cost { flops: all.flops + times * cost.flops, bytes: all.bytes + times * cost.bytes };
    parts.iter().fold(Cost::default(), add)
}

/// Noise for pictures, and a square hole in the middle of each.
struct Inputs {
    image: Array,
    holes: Vec<Region>,
    labels: Vec<u32>,
    noise: Array,
}

impl Inputs {
    fn new(model: &InpaintModel, [n, h, w, c]: [usize; 4], size: usize) -> Result<Inputs> {
        let classes = model.index.class_names.len();
        if classes == 0 {
            return Err(Error::new(Kind::Config, "--model", "it has no classes, expected a model for synthesize"));
        }
        let middle = size / 4..3 * size / 4;
        let open = (0..size * size).map(|i| middle.contains(&(i % size)) && middle.contains(&(i / size))).collect();
        let seed = rng::name_seed("bench synthesize");
        Ok(Inputs {
            image: Array::new(&[n, size, size, 3], rng::uniform(seed, 0, 0, n * size * size * 3))?,
            holes: vec![Region { width: size, height: size, open }; n],
            labels: (0..n).map(|i| (i % classes) as u32).collect(),
            noise: Array::new(&[n, h, w, c], rng::normal(seed, 1, 0, n * h * w * c))?,
        })
    }

    fn paint(&self, inpainter: &mut Inpainter, schedule: &Schedule, on_step: &mut dyn FnMut(usize)) -> Result<Array> {
        let batch = Batch {
            image: &self.image,
            holes: &self.holes,
            class_labels: &self.labels,
            noise: &self.noise,
            variance_noise: &|_| Ok(self.noise.clone()),
            posterior_noise: None,
        };
        let mut on_step = |k| {
            on_step(k);
            ControlFlow::Continue(())
        };
        Ok(inpainter.paint(&batch, schedule, false, &mut on_step)?.decoded)
    }
}
