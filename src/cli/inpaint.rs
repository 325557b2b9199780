//! The inpainting component of `naevus forward`: the whole path on given tensors, noise included.

use std::ops::ControlFlow;
use std::path::Path;

use super::tensors::Tensors;
use crate::base::{Array, Error, Kind, Result};
use crate::diffusion::inpaint::{Batch, Format, Inpainter};
use crate::diffusion::region::Region;
use crate::diffusion::{Schedule, Scheduler, Walk};
use crate::exec::Device;
use crate::plan::{Options, Tape};
use crate::weights::Writer;

#[derive(clap::Args)]
pub(crate) struct InpaintFlags {
    #[command(flatten)]
    conditions: super::conditioning::ConditionFlags,
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
}

impl InpaintFlags {
    /// Whether any of them stands on the command line.
    pub(crate) fn given(&self) -> bool {
        self.conditions.given() || self.steps.is_some() || self.guidance.is_some() || self.eta.is_some() || self.strength.is_some()
    }
}

/// image `[N, 3, H, W]`, hole `[N, 1, H, W]`, noise `[N, C, h, w]`, class_labels `[N]`, with eta > 0 variance_noise_<k>
/// -> latents_<k>, decoded, output.
pub(crate) fn forward(device: &Device, model: &Path, flags: &InpaintFlags, options: &Options, inputs: &Tensors, out: &mut Writer) -> Result<()> {
    let model = super::conditioning::load_for(device, model, &flags.conditions, inputs)?;
    let scheduler = Scheduler::read(&model.index.scheduler_config)?;
    let walk = Walk { steps: flags.steps.unwrap_or(50), eta: flags.eta.unwrap_or(0.0), strength: flags.strength.unwrap_or(1.0) };
    let schedule = Schedule::new(&scheduler, &walk)?;
    let image = inputs.tensor("image")?;
    let &[batch, height, width, 3] = image.dims() else {
        let found = image.to_channels_first();
        return Err(Error::new(Kind::Shape, "image", format!("{}, expected [N, 3, H, W]", found.shape)));
    };
    let holes = holes(inputs, [batch, height, width])?;
    let format = Format { batch, height, width, guidance: flags.guidance.unwrap_or(3.0), stochastic: walk.eta > 0.0 };
    let mut prepare = |tape: Tape| device.prepare(tape, options);
    let mut inpainter = Inpainter::new(&model, &scheduler, format, &mut prepare)?;
    let variance_noise = |k: usize| inputs.tensor(&format!("variance_noise_{k}"));
    let batch = Batch {
        image: &image,
        holes: &holes,
        class_labels: &inputs.indices("class_labels")?,
        noise: &inputs.tensor("noise")?,
        variance_noise: &variance_noise,
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
