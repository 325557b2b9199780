//! `naevus forward`: one component on given tensors, so that anyone can check an import against PyTorch.

use std::path::PathBuf;

use super::component::component_folder;
use super::tensors::Inputs;
use super::{Common, Outcome};
use crate::base::{DType, Error, Kind, Result};
use crate::exec::Device;
use crate::models::resnet::ResNet;
use crate::models::taesd::Taesd;
use crate::models::unet_2d::{ClassInput, UNet2DModel};
use crate::plan::{Options, Session, Tape};
use crate::weights::Writer;

#[derive(clap::Args)]
pub(crate) struct ForwardArgs {
    /// A model folder (model_index.json) or one component's folder (config.json and weights)
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    #[arg(long, value_enum)]
    component: Component,
    /// Input tensors in PyTorch's axis order, f32; indices i32 or i64
    #[arg(long, value_name = "IN.safetensors")]
    inputs: PathBuf,
    /// Output tensors, f32
    #[arg(long, value_name = "OUT.safetensors")]
    out: PathBuf,
    /// Also write the result of this module (`down_blocks.0.resnets.1`); repeatable
    #[arg(long, value_name = "MODULE")]
    tap: Vec<String>,
    /// Give every tensor a buffer of its own
    #[arg(long)]
    no_alias: bool,
    /// Print the plan on stderr
    #[arg(long)]
    print_plan: bool,
    #[command(flatten)]
    inpaint: super::inpaint::InpaintFlags,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Component {
    /// sample, timestep, class_labels -> sample
    Unet,
    /// sample -> latents
    VaeEncoder,
    /// latents -> sample
    VaeDecoder,
    /// pixel_values -> features, logits
    Classifier,
    /// image, hole, noise, class_labels -> latents_<k>, decoded, output
    Inpaint,
}

pub(crate) fn run(common: &Common, args: &ForwardArgs) -> Result<Outcome> {
    let device = common.open_device()?;
    let inputs = Inputs::open(&args.inputs)?;
    let mut out = Writer::new();
    match args.component {
        Component::Inpaint => {
            if !args.tap.is_empty() {
                return Err(Error::new(Kind::Usage, "--tap", "--component inpaint has none; use the components"));
            }
            super::inpaint::forward(&device, &args.model, &args.inpaint, &options(args), &inputs, &mut out)?;
        }
        _ if args.inpaint.given() => {
            return Err(Error::new(Kind::Usage, "--steps, --guidance, --eta, --strength", "these flags belong to --component inpaint"));
        }
        Component::Unet => unet(&device, args, &inputs, &mut out)?,
        Component::VaeEncoder | Component::VaeDecoder => vae(&device, args, &inputs, &mut out)?,
        Component::Classifier => classifier(&device, args, &inputs, &mut out)?,
    }
    out.metadata("naevus_version", env!("CARGO_PKG_VERSION"));
    out.metadata("device", &device.describe());
    out.write(&args.out)?;
    common.say(format_args!("wrote {}", args.out.display()));
    Ok(Outcome::Done)
}

fn options(args: &ForwardArgs) -> Options {
    Options { alias: !args.no_alias, taps: args.tap.clone(), ..Options::default() }
}

/// Runs the tape once and writes its outputs and taps.
fn finish(device: &Device, args: &ForwardArgs, tape: Tape, feed: impl FnOnce(&mut dyn Session) -> Result<()>, out: &mut Writer) -> Result<()> {
    let names: Vec<String> = tape.outputs().iter().map(|(name, _)| name.clone()).chain(args.tap.iter().cloned()).collect();
    let mut session = device.prepare(tape, &options(args))?;
    if args.print_plan {
        eprint!("{}", session.plan());
    }
    feed(session.as_mut())?;
    session.run()?;
    for name in names {
        let array = session.read(&name)?.to_channels_first();
        if array.data.iter().any(|v| !v.is_finite()) {
            let place = session.first_nonfinite()?.unwrap_or(name);
            return Err(Error::new(Kind::Numeric, place, "the first layer whose result is not finite"));
        }
        out.f32(&name, array.dims(), array.data.clone())?;
    }
    Ok(())
}

fn unet(device: &Device, args: &ForwardArgs, inputs: &Inputs, out: &mut Writer) -> Result<()> {
    let model = UNet2DModel::load(&component_folder(&args.model, "unet"))?;
    let sample = inputs.tensor("sample")?;
    let timestep = inputs.tensor("timestep")?;
    let mut tape = Tape::new();
    let x = tape.input("sample", sample.dims(), DType::F32);
    let t = tape.input("timestep", &[timestep.data.len()], DType::F32);
    let batch = sample.dims().first().copied().unwrap_or(0);
    let (class, class_values) = match model.class_input() {
        None => (None, Vec::new()),
        Some(ClassInput::Labels(rows)) => {
            let labels = inputs.indices("class_labels")?;
            if let Some(label) = labels.iter().find(|&&label| label as usize >= rows) {
                return Err(Error::new(Kind::Usage, "class_labels", format!("label {label}, expected 0 to {}", rows - 1)));
            }
            let values: &[f32] = bytemuck::cast_slice(&labels);
            (Some(tape.input("class_labels", &[labels.len()], DType::U32)), values.to_vec())
        }
        Some(ClassInput::Timestep) => {
            let values = inputs.tensor("class_labels")?;
            (Some(tape.input("class_labels", values.dims(), DType::F32)), values.data)
        }
        Some(ClassInput::Vector(width)) => {
            let values = inputs.tensor("class_labels")?;
            (Some(tape.input("class_labels", &[batch, width], DType::F32)), values.data)
        }
    };
    let y = model.forward(&mut tape, x, t, class)?;
    tape.output("sample", y);
    let feed = |session: &mut dyn Session| {
        session.write("sample", &sample.data)?;
        session.write("timestep", &timestep.data)?;
        if class.is_some() { session.write("class_labels", &class_values) } else { Ok(()) }
    };
    finish(device, args, tape, feed, out)
}

fn vae(device: &Device, args: &ForwardArgs, inputs: &Inputs, out: &mut Writer) -> Result<()> {
    let model = Taesd::load(&component_folder(&args.model, "vae"))?;
    let encode = args.component == Component::VaeEncoder;
    let (from, to) = if encode { ("sample", "latents") } else { ("latents", "sample") };
    let values = inputs.tensor(from)?;
    let mut tape = Tape::new();
    let x = tape.input(from, values.dims(), DType::F32);
    let y = if encode { model.encode(&mut tape, x)? } else { model.decode(&mut tape, x)? };
    tape.output(to, y);
    finish(device, args, tape, |session| session.write(from, &values.data), out)
}

fn classifier(device: &Device, args: &ForwardArgs, inputs: &Inputs, out: &mut Writer) -> Result<()> {
    let model = ResNet::load(&args.model)?;
    let values = inputs.tensor("pixel_values")?;
    let mut tape = Tape::new();
    let x = tape.input("pixel_values", values.dims(), DType::F32);
    let features = model.features(&mut tape, x)?;
    tape.output("features", features);
    if model.config.num_classes > 0 {
        let logits = model.logits(&mut tape, features)?;
        tape.output("logits", logits);
    }
    finish(device, args, tape, |session| session.write("pixel_values", &values.data), out)
}
