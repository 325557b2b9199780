//! The inpainting component of `naevus forward`: the whole path on given tensors, noise included.

use std::ops::ControlFlow;
use std::path::Path;

use super::tensors::Tensors;
use crate::base::{Array, Error, Kind, Result};
use crate::diffusion::inpaint::{Batch, Format, Inpainter};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::region::Region;
use crate::diffusion::tiles::Tiles;
use crate::diffusion::{Class, Schedule, Scheduler, Walk};
use crate::exec::Device;
use crate::models::Lora;
use crate::plan::{Options, Tape};
use crate::weights::Writer;

#[derive(clap::Args)]
pub(crate) struct InpaintFlags {
    #[command(flatten)]
    conditions: super::conditioning::ConditionFlags,
    /// ddim, ddpm, dpmpp-2m, unipc, euler, lcm or pndm; ddpm and lcm take variance_noise_<k> [inpaint; default the model's own]
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
    /// Denoising steps [inpaint; default 50]
    #[arg(long)]
    steps: Option<usize>,
    /// Guidance scale [inpaint; default 3]
    #[arg(long)]
    guidance: Option<f32>,
    /// 0 is deterministic; above, variance_noise_<k> is an input of step k [inpaint; default 0]
    #[arg(long)]
    eta: Option<f64>,
    /// Share of the schedule that is walked, from the image's own noised latents [inpaint; default 1]
    #[arg(long)]
    strength: Option<f64>,
    /// Latents of the image where its encoder gives a Gaussian: mode, or sample, with the inputs posterior_noise and
    /// masked_posterior_noise [inpaint; default mode]
    #[arg(long, value_name = "mode|sample")]
    posterior: Option<String>,
}

impl InpaintFlags {
    /// Whether any of them stands on the command line.
    pub(crate) fn given(&self) -> bool {
        let walk = self.scheduler.is_some() || self.steps.is_some() || self.guidance.is_some() || self.eta.is_some() || self.strength.is_some();
        walk || self.conditions.given() || self.posterior.is_some()
    }
}

/// image `[N, 3, H, W]`, hole `[N, 1, H, W]`, noise `[N, C, h, w]`, class_labels `[N]`, variance_noise_<k> of steps that take some, where the
/// posterior is sampled posterior_noise and masked_posterior_noise -> latents_<k>, decoded, output.
pub(crate) fn forward(
    device: &Device,
    (model, loras): (&Path, &[Lora]),
    flags: &InpaintFlags,
    tiles: Tiles,
    options: &Options,
    inputs: &Tensors,
    out: &mut Writer,
) -> Result<()> {
    let posterior = flags.posterior.as_deref().map_or(Ok(Posterior::Mode), Posterior::parse)?;
    let model = super::conditioning::load_for(device, (model, loras), &flags.conditions, inputs)?;
    let scheduler = match &flags.scheduler {
        Some(name) => Scheduler::read_as(&model.index.scheduler_config, Class::parse("--scheduler", name)?)?,
        None => Scheduler::read(&model.index.scheduler_config)?,
    };
    let walk = Walk { steps: flags.steps.unwrap_or(50), eta: flags.eta.unwrap_or(0.0), strength: flags.strength.unwrap_or(1.0) };
    let schedule = Schedule::new(&scheduler, &walk)?;
    let image = inputs.tensor("image")?;
    let &[batch, height, width, 3] = image.dims() else {
        let found = image.to_channels_first();
        return Err(Error::new(Kind::Shape, "image", format!("{}, expected [N, 3, H, W]", found.shape)));
    };
    let holes = holes(inputs, [batch, height, width])?;
    let (guidance, stochastic) = (flags.guidance.unwrap_or(3.0), scheduler.is_stochastic(walk.eta));
    let format = Format { batch, height, width, guidance, stochastic, posterior, tiles };
    let mut prepare = |tape: Tape| device.prepare(tape, options);
    let mut inpainter = Inpainter::new(&model, &scheduler, format, &mut prepare)?;
    inpainter.notes().iter().for_each(|note| eprintln!("note: {note}"));
    let variance_noise = |k: usize| inputs.tensor(&format!("variance_noise_{k}"));
    let posterior_noise = match posterior {
        Posterior::Mode => None,
        Posterior::Sample => Some([inputs.tensor("posterior_noise")?, inputs.tensor("masked_posterior_noise")?]),
    };
    let batch = Batch {
        image: &image,
        holes: &holes,
        class_labels: &inputs.indices("class_labels")?,
        noise: &inputs.tensor("noise")?,
        variance_noise: &variance_noise,
        posterior_noise: posterior_noise.as_ref().map(|[image, masked]| [image, masked]),
    };
    let painted = inpainter.paint(&batch, &schedule, true, &mut |_| ControlFlow::Continue(()))?;
    for (k, latents) in painted.latents.iter().enumerate() {
        add(out, &format!("latents_{k}"), latents)?;
    }
    add(out, "decoded", &painted.decoded)?;
    add(out, "output", &painted.output)
}

fn add(out: &mut Writer, name: &str, array: &Array) -> Result<()> {
    let array = array.to_channels_first();
    out.f32(name, array.dims(), array.data.clone())
}

fn holes(inputs: &Tensors, [batch, height, width]: [usize; 3]) -> Result<Vec<Region>> {
    let hole = inputs.tensor("hole")?;
    if hole.dims() != [batch, height, width, 1] {
        return Err(Error::new(Kind::Shape, "hole", format!("{}, expected [{batch}, 1, {height}, {width}]", hole.to_channels_first().shape)));
    }
    if let Some(value) = hole.data.iter().find(|v| **v != 0.0 && **v != 1.0) {
        return Err(Error::new(Kind::Usage, "hole", format!("value {value}, expected 0 (known) or 1 (repaint)")));
    }
    hole.data.chunks((height * width).max(1)).map(|values| Region::new(width, height, values, |v| v == 1.0)).collect()
}
