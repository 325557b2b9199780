//! `naevus forward`: one component on given tensors, so that anyone can check an import against PyTorch.

use std::path::PathBuf;

use super::component::load_component;
use super::tensors::{Tensors, read_ports};
use super::{Common, Outcome};
use crate::base::{Error, Kind, Result};
use crate::exec::Device;
use crate::models::Component;
use crate::plan::{Layout, Options, Tape};
use crate::weights::{Store, Writer};

#[derive(clap::Args)]
pub(crate) struct ForwardArgs {
    /// A model folder (model_index.json) or one component's folder (config.json and weights)
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    #[arg(long, value_enum)]
    component: Part,
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
enum Part {
    /// sample, timestep; as the model needs: class_labels, encoder_hidden_states, text_embeds, time_ids -> sample
    Unet,
    /// sample -> latent_dist_mean and latent_dist_logvar, or latents
    VaeEncoder,
    /// latents -> sample
    VaeDecoder,
    /// input_ids -> last_hidden_state, pooler_output or text_embeds
    TextEncoder,
    /// pixel_values -> features, logits
    Classifier,
    /// pixel_values -> logits
    Segmenter,
    /// The graph's own names
    Onnx,
    /// image, hole, noise, class_labels -> latents_<k>, decoded, output
    Inpaint,
}

impl Part {
    fn component(self) -> Option<Component> {
        Some(match self {
            Part::Unet => Component::Unet,
            Part::VaeEncoder => Component::VaeEncoder,
            Part::VaeDecoder => Component::VaeDecoder,
            Part::TextEncoder => Component::TextEncoder,
            Part::Classifier => Component::Classifier,
            Part::Segmenter => Component::Segmenter,
            Part::Onnx => Component::Onnx,
            Part::Inpaint => return None,
        })
    }
}

pub(crate) fn run(common: &Common, args: &ForwardArgs) -> Result<Outcome> {
    let device = common.open_device()?;
    let store = Store::open(&args.inputs)?;
    let mut out = Writer::new();
    match args.component.component() {
        None => {
            if !args.tap.is_empty() {
                return Err(Error::new(Kind::Usage, "--tap", "--component inpaint has none; use the components"));
            }
            super::inpaint::forward(&device, &args.model, &args.inpaint, &options(args), &Tensors::new(store), &mut out)?;
        }
        Some(_) if args.inpaint.given() => {
            return Err(Error::new(
                Kind::Usage,
                "--prompts, --class-tokens, --steps, --guidance, --eta, --strength and their like",
                "these flags belong to --component inpaint",
            ));
        }
        Some(component) => forward(common, &device, args, component, &store, &mut out)?,
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

/// Runs the component once and writes its outputs and taps.
fn forward(common: &Common, device: &Device, args: &ForwardArgs, component: Component, store: &Store, out: &mut Writer) -> Result<()> {
    let model = load_component(&args.model, component)?;
    let ports = model.ports(component, 1);
    let unread: Vec<&str> = store.names().filter(|name| !ports.iter().any(|port| port.name == *name)).collect();
    if !unread.is_empty() {
        common.say(format_args!("note: the model takes no {}", unread.join(", ")));
    }
    let mut tape = Tape::new();
    let (inputs, values) = read_ports(&mut tape, &ports, store)?;
    let outputs = model.record(&mut tape, component, &inputs)?;
    outputs.iter().for_each(|output| tape.output(&output.name, output.tensor));
    let mut session = device.prepare(tape, &options(args))?;
    if args.print_plan {
        eprint!("{}", session.plan());
    }
    // The plan holds the weights.
    drop(model);
    for (name, values) in &values {
        session.write(name, values)?;
    }
    session.run()?;
    let taps = args.tap.iter().map(|tap| (tap, Layout::Image));
    for (name, layout) in outputs.iter().map(|output| (&output.name, output.layout)).chain(taps) {
        let array = session.read(name)?;
        let array = if layout == Layout::Image { array.to_channels_first() } else { array };
        if array.data.iter().any(|v| !v.is_finite()) {
            let place = session.first_nonfinite()?.unwrap_or(name.clone());
            return Err(Error::new(Kind::Numeric, place, "the first layer whose result is not finite"));
        }
        out.f32(name, array.dims(), array.data.clone())?;
    }
    Ok(())
}
