//! `naevus forward`: one component on given tensors, so that anyone can check an import against PyTorch.

use std::path::PathBuf;
use std::time::Instant;

use super::component::load_component;
use super::lora;
use super::speech::{bytes, milliseconds};
use super::tensors::{Tensors, read_ports};
use super::tiles;
use super::{Common, Outcome};
use crate::base::{Array, Error, Kind, Result, Shape};
use crate::diffusion::tiles::Tiles;
use crate::exec::Device;
use crate::models::{Component, Lora};
use crate::plan::{Layout, Options, Session, Tape};
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
    /// Encode and decode in overlapping tiles: where the whole exceeds a limit of the device, never, or of this size
    #[arg(long, value_name = "auto|off|PX", default_value = "auto")]
    tiles: String,
    #[command(flatten)]
    lora: lora::LoraFlags,
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
    let tiles = Tiles::parse(&args.tiles)?;
    if matches!(tiles, Tiles::Pixels(_)) && !args.tap.is_empty() {
        return Err(Error::new(Kind::Usage, "--tap", "a module's result has no place in a run in tiles, expected --tiles auto or off"));
    }
    let device = common.open_device()?;
    let store = Store::open(&args.inputs)?;
    let loras = args.lora.open()?;
    let mut out = Writer::new();
    match args.component.component() {
        None => {
            if !args.tap.is_empty() {
                return Err(Error::new(Kind::Usage, "--tap", "--component inpaint has none; use the components"));
            }
            super::inpaint::forward(&device, (&args.model, &loras), &args.inpaint, tiles, &options(args), &Tensors::new(store), &mut out)?;
        }
        Some(_) if args.inpaint.given() => {
            return Err(Error::new(
                Kind::Usage,
                "--prompts, --class-tokens, --scheduler, --steps, --guidance, --eta, --strength, --posterior",
                "these flags belong to --component inpaint",
            ));
        }
        Some(component) if matches!(tiles, Tiles::Pixels(_)) && !tiles::may_be_cut(component) => {
            return Err(Error::new(Kind::Usage, "--tiles", format!("{} has none, expected vae-encoder, vae-decoder or inpaint", component.name())));
        }
        Some(component) => forward(common, &device, args, component, &loras, &store, &mut out)?,
    }
    out.metadata("naevus_version", env!("CARGO_PKG_VERSION"));
    out.metadata("device", &device.describe());
    if !loras.is_empty() {
        out.metadata("loras", &serde_json::Value::Array(lora::report(&loras)?).to_string());
    }
    out.write(&args.out)?;
    common.say(format_args!("wrote {}", args.out.display()));
    Ok(Outcome::Done)
}

/// Time since `start` in words.
fn since(start: Instant) -> String {
    milliseconds(start.elapsed().as_secs_f64() * 1e3)
}

fn options(args: &ForwardArgs) -> Options {
    Options { alias: !args.no_alias, taps: args.tap.clone(), ..Options::default() }
}

/// Runs the component once and writes its outputs and taps.
fn forward(common: &Common, device: &Device, args: &ForwardArgs, component: Component, loras: &[Lora], store: &Store, out: &mut Writer) -> Result<()> {
    let start = Instant::now();
    let model = load_component(&args.model, component, loras)?;
    common.detail(format_args!("loaded in {}", since(start)));
    let ports = model.ports(component, 1);
    let unread: Vec<&str> = store.names().filter(|name| !ports.iter().any(|port| port.name == *name)).collect();
    if !unread.is_empty() {
        common.say(format_args!("note: the model takes no {}", unread.join(", ")));
    }
    let mut tape = Tape::new();
    let (inputs, values) = read_ports(&mut tape, &ports, store)?;
    let outputs = model.record(&mut tape, component, &inputs)?;
    outputs.iter().for_each(|output| tape.output(&output.name, output.tensor));
    let shapes: Vec<Shape> = values.iter().map(|(name, _)| Ok(tape.shape(inputs.get(name)?).clone())).collect::<Result<_>>()?;
    let tiles = Tiles::parse(&args.tiles)?;
    let start = Instant::now();
    let whole = if matches!(tiles, Tiles::Pixels(_)) { None } else { Some(device.prepare(tape, &options(args))) };
    let may_be_cut = tiles != Tiles::Off && args.tap.is_empty() && tiles::may_be_cut(component);
    let mut session = match whole {
        Some(Err(limit)) if !(limit.kind() == Kind::Limit && may_be_cut) => return Err(limit),
        Some(Ok(session)) => session,
        _ => {
            let arrays = values.into_iter().zip(shapes).map(|((name, data), shape)| (name, Array { shape, data })).collect::<Vec<_>>();
            let mut patchwork = tiles::prepare(device, &options(args), model.as_ref(), component, &arrays, tiles)?;
            patchwork.note().iter().for_each(|note| eprintln!("note: {} {note}", component.name()));
            if args.print_plan {
                patchwork.sessions().for_each(|session| eprint!("{}", session.plan()));
            }
            let names: Vec<String> = outputs.into_iter().map(|output| output.name).collect();
            return tiles::run(&mut patchwork, component, &arrays, &names, out);
        }
    };
    if args.print_plan {
        eprint!("{}", session.plan());
    }
    // The plan holds the weights.
    drop(model);
    common.detail(format_args!("prepared in {}: {} steps, {} of memory", since(start), session.plan().steps().len(), bytes(session.plan().peak_bytes())));
    let start = Instant::now();
    for (name, values) in &values {
        session.write(name, values)?;
    }
    session.run()?;
    session.finish()?;
    common.detail(format_args!("ran in {}", since(start)));
    let taps = args.tap.iter().map(|tap| (tap.as_str(), Layout::Image));
    write(session.as_mut(), outputs.iter().map(|output| (output.name.as_str(), output.layout)).chain(taps), out)
}

/// Reads these results and adds them to the file.
fn write<'a>(session: &mut dyn Session, results: impl Iterator<Item = (&'a str, Layout)>, out: &mut Writer) -> Result<()> {
    for (name, layout) in results {
        let array = session.read(name)?;
        let array = if layout == Layout::Image { array.to_channels_first() } else { array };
        if array.data.iter().any(|v| !v.is_finite()) {
            let place = session.first_nonfinite()?.unwrap_or(name.to_string());
            return Err(Error::new(Kind::Numeric, place, "the first layer whose result is not finite"));
        }
        out.f32(name, array.dims(), array.data.clone())?;
    }
    Ok(())
}
