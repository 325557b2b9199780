//! `naevus demo`: the whole path on the models inside the program.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::features::Network;
use super::{Common, Outcome, conditioning, dataset, progress, speech, synthesize};
use crate::base::Result;
use crate::diffusion::Scheduler;
use crate::driver::conditioning::Conditioning;
use crate::driver::dataset::DataSetOptions;
use crate::driver::demo::{self, CLASSES, Shown, Verdict, Wishes};
use crate::driver::demo_models::{self, DemoModels};
use crate::driver::features::Features;
use crate::driver::manifest;
use crate::driver::reference::Reference;
use crate::driver::select::{self, Candidate, ClassSummary, SelectOptions, Selection};
use crate::driver::synthesize::{Job, MANIFEST};
use crate::exec::Device;

/// Images per forward of the classifiers.
const BATCH: usize = 16;

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// The folder to write: new, empty, or an earlier demo's, which is then taken up
    #[arg(long, value_name = "DIR", default_value = "naevus-demo")]
    out: PathBuf,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Samples of each of df, vasc and akiec
    #[arg(long, value_name = "N", default_value_t = 8)]
    per_class: usize,
    /// Denoising steps
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Models and sources from a folder laid out like weights/ [default: those inside the program]
    #[arg(long, value_name = "DIR")]
    weights: Option<PathBuf>,
    /// Write the best rows as a strip, without scores
    #[arg(long, value_name = "FILE")]
    strip: Option<PathBuf>,
}

pub(crate) fn run(common: &Common, args: &DemoArgs) -> Result<Outcome> {
    let since = Instant::now();
    let wishes = Wishes { seed: args.seed, per_class: args.per_class, steps: args.steps };
    wishes.check()?;
    args.weights.as_ref().map_or_else(demo_models::check_inside, |_| Ok(()))?;
    let device = common.open_device()?;
    let root = args.weights.clone().unwrap_or_else(|| args.out.join("models"));
    demo_models::claim(&args.out, &readme(&args.out, &root))?;
    let models = if args.weights.is_some() { DemoModels { root } } else { DemoModels::unpack(&args.out)? };
    let model = conditioning::load(&device, (&models.inpaint(), &[]), &Conditioning::default(), None)?;
    let scheduler = Scheduler::read(&model.index.scheduler_config)?;
    let data = dataset::open(common, &DataSetOptions { root: Some(models.sources()), ..DataSetOptions::default() })?;
    let mut settings = demo::settings(wishes, &models, (&model, &scheduler), &data, common.device.as_deref().unwrap_or("auto"))?;
    let stop = progress::interruption()?;
    common.say(format_args!("{} samples of each of df, vasc and akiec, {} steps", args.per_class, args.steps));
    let precision = device.precision().to_string();
    settings.execution.precision = precision.clone();
    let description = device.describe();
    let job = Job {
        model: &model,
        scheduler: &scheduler,
        data: &data,
        settings: &settings,
        out: &args.out,
        device: &description,
        precision: &precision,
        may_halve: true,
        ends_at_nonfinite: false,
    };
    let (summary, _) = synthesize::attempt(common, &device, &job, None, &stop)?;
    if summary.interrupted {
        common.say("stopped; the same command goes on from here");
        return Ok(Outcome::DoneWithFailures);
    }
    let candidates = select::candidates(&args.out)?;
    let (selection, judged) = score(common, &device, &models, &candidates, &stop)?;
    selection.write(&args.out)?;
    let verdicts = demo::verdicts(&candidates, &judged);
    demo::write_verdicts(&args.out, &verdicts)?;
    let records = manifest::read(&args.out.join(MANIFEST))?.samples;
    let shown = Shown { out: &args.out, model: &model, data: &data, records: &records, selection: &selection, verdicts: &verdicts };
    let sheet = shown.write_sheet()?;
    if let Some(path) = &args.strip {
        common.say(format_args!("strip: {}", shown.write_strip(path)?.display()));
    }
    report(common, args, &selection, &verdicts, &sheet, since.elapsed().as_secs_f64())?;
    Ok(if summary.is_clean() && verdicts.len() == candidates.len() { Outcome::Done } else { Outcome::DoneWithFailures })
}

/// The selection by the features of real images that ship, and what the judge makes of the samples.
fn score(
    common: &Common,
    device: &Device,
    models: &DemoModels,
    candidates: &[Candidate],
    stop: &std::sync::atomic::AtomicBool,
) -> Result<(Selection, Features)> {
    let samples: Vec<(String, PathBuf)> = candidates.iter().map(|c| (c.sample_id.clone(), c.image.clone())).collect();
    let reference = Reference::read(&models.reference())?;
    let synthetic = Network::load(&models.classifier())?.extract(common, device, &samples, BATCH, stop)?;
    let selection = select::select(&reference.features, &reference.labels(), candidates, &synthetic, &SelectOptions::default())?;
    let judged = Network::load(&models.judge())?.extract(common, device, &samples, BATCH, stop)?;
    for (id, fact) in synthetic.skipped.iter().chain(&judged.skipped) {
        eprintln!("skipped {id}: {fact}");
    }
    Ok((selection, judged))
}

fn report(common: &Common, args: &DemoArgs, selection: &Selection, verdicts: &[Verdict], sheet: &Path, seconds: f64) -> Result<()> {
    let agreeing = |class: &str| verdicts.iter().filter(|verdict| verdict.class == class && verdict.agrees).count();
    if common.json {
        let class = |c: &ClassSummary| {
            json!({
                "class": c.class, "real": c.real, "samples": c.candidates, "judge_agrees": agreeing(&c.class), "other_label": c.other_label,
                "near_copies": c.duplicates, "passed": c.passed, "kept": c.kept,
            })
        };
        let classes: Vec<_> = selection.classes.iter().map(class).collect();
        return speech::print_json(&json!({
            "out": args.out.display().to_string(), "contact_sheet": sheet.display().to_string(), "seconds": seconds, "classes": classes,
        }));
    }
    speech::print_line("class                     samples  judge agrees  pass the gates  kept")?;
    for [name, meaning] in CLASSES {
        for c in selection.classes.iter().filter(|c| c.class == name) {
            speech::print_line(&format!("{name:<6} {meaning:<18} {:>7} {:>13} {:>15} {:>5}", c.candidates, agreeing(name), c.passed, c.kept))?;
        }
    }
    let out = args.out.display();
    speech::print_line(&format!("done in {seconds:.1} s; look at {}", sheet.display()))?;
    speech::print_line(&format!("samples in {out}/images, where they come from in {out}/manifest.jsonl, scores in {out}/selection.jsonl"))?;
    speech::print_line("Synthetic images, not for diagnosis. Models and images: CC BY-NC 4.0, see models/README.md")
}

/// What the folder says of itself. Paths are those of the call.
fn readme(out: &Path, models: &Path) -> String {
    README.replace("{out}", &out.display().to_string()).replace("{models}", &models.display().to_string())
}

const README: &str = "
Rare skin lesions painted into synthetic skin by small models that were trained on HAM10000. **Synthetic images, not for diagnosis.**
Models and images: CC BY-NC 4.0, for research and teaching.

| | |
|---|---|
| `contact_sheet.png` | every sample beside its source, with the judge's verdict and its score |
| `images/<class>/` | the samples |
| `manifest.jsonl` | one line per sample: source, seed, settings, checksums |
| `selection.jsonl` | outlier scores and gates, and which samples are kept |
| `verdicts.jsonl` | the class that an independent classifier sees |
| `run.toml` | all settings |
| `models/` | the models with their cards, the sources, and features of real images that the scores refer to |

The same samples again, from the folder where the demo was run:

    naevus synthesize --config {out}/run.toml --out again

Your own images, a folder with `images/`, `masks/` and `labels.csv`:

    naevus synthesize --model {models}/inpaint --dataset DATA --classes df,vasc --per-class 100 --steps 20 --guidance 5 --dilate 20 --feather 8 --detail 1 --out out
    naevus select --classifier {models}/classifier --reference {models}/reference/features.safetensors --out out
";
