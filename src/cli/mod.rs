//! The street: words, flags and exit codes. stdout is data, stderr is speech.

mod batch;
mod bench;
mod bench_report;
mod bench_synthesize;
mod cache;
mod check;
mod component;
mod conditioning;
mod dataset;
mod demo;
mod devices;
mod features;
mod forward;
mod inpaint;
mod inspect;
mod lora;
mod progress;
mod select;
mod speech;
mod synthesize;
mod tensors;
mod tiles;

use clap::{Args, Parser, Subcommand};

use crate::base::{Error, Kind, Result};
use crate::exec::precision::Precision;
use crate::exec::{Checks, Device, Settings, Tune};

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1: done, but some items failed or a check failed.
    DoneWithFailures,
}

#[derive(Parser)]
#[command(name = "naevus", version, about = "Fills the long tail of a medical image data set with synthetic lesions, on any GPU or none", long_about = None)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args, Clone)]
pub(crate) struct Common {
    #[arg(long, global = true, value_name = "DEVICE", help = "auto (default), cpu, gpu, an index of `naevus devices`, or a part of an adapter's name")]
    device: Option<String>,
    /// How a GPU stores weights and activations, auto (f32), f32 or f16; sums are f32 in either
    #[arg(long, global = true, default_value = "auto")]
    precision: String,
    /// Choose a GPU's kernels by measuring them, once per adapter and driver, on software adapters too [default: on hardware]
    #[arg(long, global = true, conflicts_with = "no_tune")]
    tune: bool,
    /// Choose a GPU's kernels by the written heuristic
    #[arg(long, global = true)]
    no_tune: bool,
    /// Keep wgpu's runtime checks of indices, loops and divisions in kernels that were proved without them
    #[arg(long, global = true)]
    checked: bool,
    /// Do not multiply by cooperative matrices (tensor cores) even where they passed their self-test
    #[arg(long, global = true)]
    no_coop: bool,
    /// Threads of the CPU executor (default: all cores)
    #[arg(long, global = true)]
    threads: Option<usize>,
    /// Machine-readable stdout where the verb reports
    #[arg(long, global = true)]
    json: bool,
    /// Say only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// List adapters, their limits, and which one `auto` takes
    #[command(after_help = "Example: naevus devices --json")]
    Devices,
    /// Prove every op and variant on the device
    #[command(after_help = "Example: naevus check --device gpu --export check.json")]
    Check(check::CheckArgs),
    /// Say what a weights file or model folder holds
    #[command(after_help = "Example: naevus inspect ../shared/reference/inpaint-ham128 --batch 4")]
    Inspect(inspect::InspectArgs),
    /// Run one component on tensors from a file
    #[command(after_help = "Example: naevus forward --model M --component unet --inputs in.safetensors --out out.safetensors --tap mid_block")]
    Forward(forward::ForwardArgs),
    /// Make samples of rare classes in real images: the main job
    #[command(after_help = "Example: naevus synthesize --model inpaint-ham128 --dataset ham10000 --classes df,vasc --per-class 8 --steps 20 --out out")]
    Synthesize(synthesize::SynthesizeArgs),
    /// Extract features and logits of images
    #[command(after_help = "Example: naevus features --classifier resnet18-ham128 --images out/manifest.jsonl --out features.safetensors")]
    Features(features::FeaturesArgs),
    /// Score a run's samples and keep the best of each class
    #[command(after_help = "Example: naevus select --classifier resnet18-ham128 --dataset ham10000 --out out --gamma 0.5")]
    Select(select::SelectArgs),
    /// The whole path on the models inside the program: no arguments, no network
    #[command(after_help = "Example: naevus demo --out naevus-demo")]
    Demo(demo::DemoArgs),
    /// Prove, then time kernels or a model
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::BenchArgs),
}

/// Runs the program with the process's arguments and returns its exit code.
pub fn run() -> u8 {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(Outcome::Done) => 0,
        Ok(Outcome::DoneWithFailures) => 1,
        Err(e) => {
            eprintln!("naevus: {e}");
            2
        }
    }
}

fn dispatch(cli: &Cli) -> Result<Outcome> {
    let common = &cli.common;
    if let Some(threads) = common.threads {
        if threads == 0 {
            return Err(Error::new(Kind::Usage, "--threads 0", "expected at least 1"));
        }
        let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        built.map_err(|e| Error::new(Kind::Usage, format!("--threads {threads}"), e.to_string()))?;
    }
    match &cli.verb {
        Verb::Devices => devices::run(common),
        Verb::Check(args) => check::run(common, args),
        Verb::Inspect(args) => inspect::run(common, args),
        Verb::Forward(args) => forward::run(common, args),
        Verb::Synthesize(args) => synthesize::run(common, args),
        Verb::Features(args) => features::run(common, args),
        Verb::Select(args) => select::run(common, args),
        Verb::Demo(args) => demo::run(common, args),
        Verb::Bench(args) => bench::run(common, args),
    }
}

impl Common {
    /// Opens the device and says which one it is: the first line on stderr.
    fn open_device(&self) -> Result<Device> {
        self.open(self.device.as_deref().unwrap_or("auto"), self.precision()?)
    }

    fn open(&self, request: &str, precision: Precision) -> Result<Device> {
        let settings = Settings { precision, ..self.settings()? };
        let device = Device::open_with(request, &settings)?;
        if device.precision() != settings.precision {
            return Err(Error::new(Kind::Usage, "--precision f16", "the CPU executor has f32 only; choose a GPU with --device"));
        }
        self.say(format_args!("device: {}; precision: {}", device.describe(), device.precision()));
        Ok(device)
    }

    fn precision(&self) -> Result<Precision> {
        match self.precision.as_str() {
            "auto" | "f32" => Ok(Precision::F32),
            "f16" => Ok(Precision::F16),
            other => Err(Error::new(Kind::Usage, format!("--precision {other}"), "expected auto, f32 or f16")),
        }
    }

    /// The same device in f32, after values that f16 does not hold.
    fn widen(&self, device: &mut Device, request: &str, overflow: &Error) -> Result<()> {
        eprintln!("note: {overflow}: f16 does not hold them, going on in f32");
        *device = self.open(request, Precision::F32)?;
        Ok(())
    }

    fn settings(&self) -> Result<Settings> {
        let cache = cache::folder();
        if self.tune && cache.is_none() {
            return Err(Error::new(Kind::Usage, "--tune", "there is no folder to keep the choice in; set NAEVUS_CACHE to one"));
        }
        let tune = match (self.tune, self.no_tune) {
            (true, _) => Tune::On,
            (_, true) => Tune::Off,
            _ => Tune::Auto,
        };
        let say: fn(&str) = if self.quiet { |_| {} } else { |line| eprintln!("{line}") };
        let checks = if self.checked { Checks::Keep } else { Checks::Auto };
        Ok(Settings { tune, checks, cache, say, matrices: !self.no_coop, ..Settings::default() })
    }

    fn say(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }

    /// A line for those who asked for more with `-v`.
    fn detail(&self, line: impl std::fmt::Display) {
        if self.verbose {
            eprintln!("{line}");
        }
    }
}
