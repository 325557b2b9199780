//! `naevus synthesize`: the main job.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use serde_json::json;

use super::batch::{self, Chosen};
use super::dataset::{self, DataSetFlags};
use super::{Common, Outcome, lora, progress, speech};
use crate::base::{Error, Kind, Result};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::tiles::Tiles;
use crate::diffusion::{Class, Scheduler};
use crate::driver::class_plan::{Fill, plan};
use crate::driver::conditioning::Conditioning;
use crate::driver::dataset::{DataSet, DataSetOptions};
use crate::driver::files::sha256_of;
use crate::driver::run_settings::{Data, Execution, RunSettings, Sampling, Shard, UsedLora};
use crate::driver::sources::Policy;
use crate::driver::synthesize::{Event, Job, Summary, dataset_sha256, synthesize};
use crate::exec::Device;
use crate::exec::memory::Budget;
use crate::exec::precision::Precision;
use crate::models::{InpaintModel, Lora};
use crate::plan::{Options, Tape};

#[derive(clap::Args)]
pub(crate) struct SynthesizeArgs {
    /// The inpainting model's folder, with model_index.json
    #[arg(long, value_name = "PATH", required_unless_present = "config")]
    model: Option<PathBuf>,
    #[command(flatten)]
    lora: lora::LoraFlags,
    #[command(flatten)]
    data: DataSetFlags,
    #[command(flatten)]
    conditions: super::conditioning::ConditionFlags,
    /// Rows and columns of the images, for a pipeline of diffusers [default: what its denoiser was trained on]
    #[arg(long, value_name = "PX")]
    size: Option<usize>,
    /// The folder to write; a run of the same settings in it is resumed [default with --config: its folder]
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    out: Option<PathBuf>,
    /// Settings of an earlier run: makes the same samples again
    #[arg(long, value_name = "run.toml", conflicts_with_all = ["model", "dataset", "labels", "images", "masks", "classes", "per_class", "fill", "seed", "scheduler", "steps", "guidance", "strength", "eta", "sources", "dilate", "feather", "detail", "posterior", "tiles", "shard", "lora"])]
    config: Option<PathBuf>,
    /// Names of the model's classes, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    classes: Option<Vec<String>>,
    /// Samples of each class
    #[arg(long, value_name = "N", conflicts_with = "fill")]
    per_class: Option<usize>,
    /// head (up to the largest class), a number of images, or a CSV with class,count [default: head]
    #[arg(long, value_name = "head|N|FILE")]
    fill: Option<String>,
    /// With --fill: the share that `select` will keep; more candidates are made
    #[arg(long, default_value_t = 1.0)]
    gamma: f64,
    /// ddim, ddpm, dpmpp-2m, unipc, euler, lcm or pndm, with the model's betas and prediction type [default: the model's own]
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
    #[arg(long, default_value_t = 50)]
    steps: usize,
    /// Classifier-free guidance: 1 is none
    #[arg(long, default_value_t = 3.0)]
    guidance: f64,
    /// Share of the schedule that is walked; below 1 the source's own lesion shines through
    #[arg(long, default_value_t = 1.0)]
    strength: f64,
    #[arg(long, default_value_t = 0.0)]
    eta: f64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images at once; auto: what keeps the device busy and fits its memory, halved where the device does not take it
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    batch: String,
    /// Memory that weights and plans may take on the device, such as 6GiB [default: 80 % of a GPU's memory, or of what is free on the CPU]
    #[arg(long, value_name = "BYTES")]
    memory_limit: Option<String>,
    /// Whose images give the skin: same-class, same-class-then-any, any, head, or paired: the same image for sample k of every class
    #[arg(long, default_value = "same-class-then-any")]
    sources: String,
    /// Widen the mask by this many pixels [default: the model's]
    #[arg(long, value_name = "PX")]
    dilate: Option<usize>,
    /// Soften the seam over this many pixels inside the hole
    #[arg(long, value_name = "PX", default_value_t = 0)]
    feather: usize,
    /// How much of the source's fine detail, which the autoencoder loses, the hole gets back: 0, none, to 1, all
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    detail: f64,
    /// Latents of the source where the encoder gives a Gaussian of them: mode, or sample
    #[arg(long, value_name = "mode|sample", default_value = "mode")]
    posterior: String,
    /// Encode and decode in overlapping tiles: where the whole exceeds a limit of the device, never, or of this size
    #[arg(long, value_name = "auto|off|PX", default_value = "auto")]
    tiles: String,
    /// Only part I of N
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    shard: String,
    /// At most so many samples in this run
    #[arg(long)]
    limit: Option<usize>,
}

pub(crate) fn run(common: &Common, args: &SynthesizeArgs) -> Result<Outcome> {
    let asked = batch::parse(&args.batch)?;
    let limit = args.memory_limit.as_deref().map(batch::parse_bytes).transpose()?;
    let earlier = args.config.as_deref().map(RunSettings::read).transpose()?;
    let request = common.device.clone().or(earlier.as_ref().map(|s| s.execution.device.clone())).unwrap_or("auto".to_string());
    let precision = match earlier.as_ref().filter(|_| common.precision == "auto") {
        Some(settings) if settings.execution.precision == "f16" => Precision::F16,
        _ => common.precision()?,
    };
    let mut device = common.open(&request, precision)?;
    let out = out_folder(args)?;
    let model_path = earlier.as_ref().map_or_else(|| args.model.clone().unwrap_or_default(), |s| s.sampling.model.clone());
    let loras = match &earlier {
        Some(settings) => settings.sampling.loras.iter().map(|lora| Lora::open(&lora.path, lora.weight)).collect::<Result<Vec<_>>>()?,
        None => args.lora.open()?,
    };
    let used_loras = lora::used(&loras)?;
    let conditioning = args.conditions.resolve(args.size, args.classes.as_deref(), earlier.as_ref().map(|s| &s.sampling.conditioning))?;
    let mut model = super::conditioning::load(&device, (&model_path, &loras), &conditioning, None)?;
    let scheduler = match earlier.as_ref().map(|s| &s.sampling.scheduler).or(args.scheduler.as_ref()) {
        Some(name) => Scheduler::read_as(&model.index.scheduler_config, Class::parse("--scheduler", name)?)?,
        None => Scheduler::read(&model.index.scheduler_config)?,
    };
    let options = earlier.as_ref().map_or_else(|| args.data.options(), |s| data_options(&s.data));
    let data = dataset::open(common, &options)?;
    let model_sha256 = sha256_of(&model_path)?;
    let mut settings = match earlier {
        Some(settings) => repeat(settings, &model_sha256, &used_loras, &data)?,
        None => settings(args, &model_path, (model_sha256, used_loras), (&model, &scheduler), &data)?,
    };
    settings.sampling.conditioning = conditioning;
    settings.execution.device = request.clone();
    settings.execution.precision = precision.to_string();
    settings.execution.limit = args.limit;
    let stop = progress::interruption()?;
    let description = device.describe();

    let ((summary, batch), chosen) = loop {
        let (precision, ends_at_nonfinite) = (device.precision().to_string(), device.precision() == Precision::F16);
        let job = Job {
            model: &model,
            scheduler: &scheduler,
            data: &data,
            settings: &settings,
            out: &out,
            device: &description,
            precision: &precision,
            may_halve: asked.is_none(),
            ends_at_nonfinite,
        };
        let chosen = asked.map_or_else(|| batch::choose(&device, &job, limit), |n| Ok(Chosen::asked(n)))?;
        common.say(format_args!("batch: {}", chosen));
        let mut settings = settings.clone();
        settings.execution.batch = chosen.images;
        let job = Job { settings: &settings, ..job };
        match attempt(common, &device, &job, limit, &stop) {
            // The samples that were made stay; the text encoders may have overflowed as well.
            Err(e) if e.kind() == Kind::Numeric && ends_at_nonfinite => {
                common.widen(&mut device, &request, &e)?;
                model = super::conditioning::load(&device, (&model_path, &loras), &settings.sampling.conditioning, None)?;
            }
            done => break (done?, chosen),
        }
    };
    report(common, &out, &summary, batch, &chosen.why)?;
    Ok(if summary.is_clean() { Outcome::Done } else { Outcome::DoneWithFailures })
}

/// Runs the job with a bar and tells what happens; also the images at once, 0 where nothing was left to make. `limit`: bytes that
/// its plans may take together.
pub(super) fn attempt(common: &Common, device: &Device, job: &Job, limit: Option<u64>, stop: &std::sync::atomic::AtomicBool) -> Result<(Summary, usize)> {
    let whole = limit.and_then(|_| Budget::of(device, limit));
    let budget = RefCell::new(whole.clone());
    // Said before anything runs: encoder, one denoising step, decoder.
    let mut prepare = |tape: Tape| {
        let plan = device.plan(tape, &Options::default())?;
        budget.borrow_mut().as_mut().map_or(Ok(()), |budget| budget.take(&plan))?;
        device.ready(plan)
    };
    let bar = progress::bar(common, 0, "steps");
    let steps = job.settings.sampling.schedule(job.scheduler)?.rows.len();
    let (mut finished, mut batch) = (0, 0);
    let mut on_event = |event: Event| {
        match event {
            Event::Halved { .. } => _ = budget.replace(whole.clone()),
            Event::Prepared { batch: taken, .. } => batch = taken,
            _ => {}
        }
        tell(common, &bar, steps, &mut finished, &event);
    };
    let summary = synthesize(job, &mut prepare, stop, &mut on_event);
    bar.finish_and_clear();
    Ok((summary?, batch))
}

/// The bar counts steps of samples: `finished` samples are behind it.
fn tell(common: &Common, bar: &ProgressBar, steps: usize, finished: &mut usize, event: &Event) {
    let speak = |line: String| if bar.is_hidden() { common.say(line) } else { bar.println(line) };
    match event {
        Event::Planned { samples, resumed } => {
            bar.set_length((samples * steps) as u64);
            if *resumed > 0 {
                speak(format!("{resumed} samples are there already; {samples} to make"));
            }
        }
        Event::Halved { batch, error } => speak(format!("{error}; trying batches of {batch}")),
        Event::Prepared { batch, memory, notes } => {
            let [encode, step, decode] = memory.map(speech::bytes);
            let sum = speech::bytes(memory.iter().sum());
            speak(format!("memory of the plans of {batch} images: {sum} (encode {encode}, step {step}, decode {decode})"));
            notes.iter().for_each(|note| bar.suspend(|| eprintln!("note: {note}")));
        }
        Event::Step { done, images, .. } => bar.set_position((*finished * steps + done * images) as u64),
        Event::Written(record) => {
            *finished += 1;
            bar.set_position((*finished * steps) as u64);
            if common.verbose {
                speak(format!("{} from {}", record.sample_id, record.source_id));
            }
        }
        Event::Skipped { source_id, error } => bar.suspend(|| eprintln!("skipped source {source_id}: {error}")),
        Event::Failed { sample_id, error } => bar.suspend(|| eprintln!("failed {sample_id}: {error}")),
    }
}

fn report(common: &Common, out: &Path, s: &Summary, batch: usize, because: &str) -> Result<()> {
    if common.json {
        return speech::print_json(&json!({
            "out": out.display().to_string(), "written": s.written, "resumed": s.resumed, "skipped_sources": s.skipped,
            "failed": s.failed, "interrupted": s.interrupted, "batch": batch, "batch_because": because,
        }));
    }
    let mut line = format!("{} samples written to {}", s.written, out.display());
    for (count, what) in [(s.resumed, "there already"), (s.skipped, "sources skipped"), (s.failed, "failed")] {
        if count > 0 {
            line += &format!(", {count} {what}");
        }
    }
    speech::print_line(&line)?;
    if s.interrupted {
        common.say("stopped; the same command goes on from here");
    }
    Ok(())
}

fn out_folder(args: &SynthesizeArgs) -> Result<PathBuf> {
    let of_config = || args.config.as_ref().and_then(|c| c.parent()).map(Path::to_path_buf);
    args.out.clone().or_else(of_config).ok_or_else(|| Error::new(Kind::Usage, "--out", "no folder was given"))
}

fn data_options(data: &Data) -> DataSetOptions {
    let data = data.clone();
    DataSetOptions {
        root: Some(data.dataset).filter(|root| !root.as_os_str().is_empty()),
        labels: data.labels,
        images: data.images,
        masks: data.masks,
        id_column: data.id_column,
        class_column: data.class_column,
        group_column: data.group_column,
    }
}

/// The settings of an earlier run, which must still find the same model and sources.
fn repeat(settings: RunSettings, model_sha256: &str, loras: &[UsedLora], data: &DataSet) -> Result<RunSettings> {
    let changed = |place: &str, fact: &str| Err(Error::new(Kind::Data, place, format!("{fact} than when the run was made: the samples would differ")));
    if settings.sampling.model_sha256 != model_sha256 {
        return changed("--config: model", "the model's files are others");
    }
    if let Some(lora) = settings.sampling.loras.iter().zip(loras).find(|(then, now)| then.sha256 != now.sha256) {
        return changed("--config: loras", &format!("{} is another", lora.0.path.display()));
    }
    if settings.sampling.dataset_sha256 != dataset_sha256(data) {
        return changed("--config: dataset", "the data set has other sources");
    }
    Ok(settings)
}

fn settings(
    args: &SynthesizeArgs,
    model_path: &Path,
    (model_sha256, loras): (String, Vec<UsedLora>),
    (model, scheduler): (&InpaintModel, &Scheduler),
    data: &DataSet,
) -> Result<RunSettings> {
    let d = &args.data;
    Ok(RunSettings {
        naevus_version: env!("CARGO_PKG_VERSION").to_string(),
        sampling: Sampling {
            model: model_path.to_path_buf(),
            model_sha256,
            dataset_sha256: dataset_sha256(data),
            conditioning: Conditioning::default(),
            seed: args.seed,
            scheduler: scheduler.class.name().to_string(),
            steps: args.steps,
            guidance: args.guidance,
            strength: args.strength,
            eta: args.eta,
            sources: Policy::parse(&args.sources)?,
            dilate_px: args.dilate.unwrap_or(model.index.dilate_px),
            feather_px: args.feather,
            detail: args.detail,
            posterior: Posterior::parse(&args.posterior)?,
            tiles: Tiles::parse(&args.tiles)?,
            loras,
        },
        data: Data {
            dataset: d.dataset.clone().unwrap_or_default(),
            labels: d.labels.clone(),
            images: d.images.clone(),
            masks: d.masks.clone(),
            id_column: d.id_column.clone(),
            class_column: d.class_column.clone(),
            group_column: d.group_column.clone(),
        },
        execution: Execution { device: String::new(), precision: "f32".to_string(), batch: 1, shard: Shard::parse(&args.shard)?, limit: args.limit },
        classes: classes(args, model, data)?,
    })
}

/// Samples to make, by the model's class names. Names are compared without regard to case: ISIC 2019 writes DF where HAM10000 writes df.
fn classes(args: &SynthesizeArgs, model: &InpaintModel, data: &DataSet) -> Result<BTreeMap<String, usize>> {
    let known = &model.index.class_names;
    let find = |name: &String| known.iter().find(|k| k.eq_ignore_ascii_case(name));
    let unknown = |name: &str| Error::new(Kind::Usage, "--classes", format!("the model has no class `{name}`, it has {}", known.join(", ")));
    let wanted: Vec<String> = match &args.classes {
        None => known.clone(),
        Some(names) => names.iter().map(|name| find(name).cloned().ok_or_else(|| unknown(name))).collect::<Result<_>>()?,
    };
    if let Some(n) = args.per_class {
        return Ok(wanted.into_iter().map(|name| (name, n)).collect());
    }
    let fill = Fill::parse(args.fill.as_deref().unwrap_or("head"))?;
    let counts: Vec<(String, usize)> = data.counts().into_iter().map(|(name, n)| (find(&name.to_string()).cloned().unwrap_or(name.to_string()), n)).collect();
    Ok(plan(&counts, Some(&wanted), &fill, args.gamma)?.into_iter().map(|line| (line.class, line.candidates)).collect())
}
