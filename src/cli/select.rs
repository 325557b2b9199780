//! `naevus select`: scores and gates over a run's samples; keeps the best fraction of each class.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use serde_json::json;

use super::dataset::{self, DataSetFlags};
use super::features::Network;
use super::{Common, Outcome, progress, speech};
use crate::base::Result;
use crate::driver::features::Features;
use crate::driver::reference::Reference;
use crate::driver::select::{self, SelectOptions, Selection};
use crate::exec::Device;
use crate::ood::Method;

#[derive(clap::Args)]
pub(crate) struct SelectArgs {
    /// A classifier: a timm-style folder (config.json and weights) or a file of weights
    #[arg(long, value_name = "PATH")]
    classifier: PathBuf,
    #[command(flatten)]
    data: DataSetFlags,
    /// Features of real images with their classes, in place of --dataset, such as the demo's models/reference/features.safetensors
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dataset", "labels", "images", "masks", "id_column", "class_column", "group_column"])]
    reference: Option<PathBuf>,
    /// The run's folder, with manifest.jsonl
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Fraction of the samples that pass the gates which is kept, per class
    #[arg(long, default_value_t = 0.5)]
    gamma: f64,
    /// The score that decides: mahalanobis or knn (both are written)
    #[arg(long, default_value = "mahalanobis")]
    score: String,
    /// Neighbours of the knn score
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// A sample whose feature is nearer to a real image's than this cosine is a near copy
    #[arg(long, default_value_t = 0.995)]
    max_cosine: f64,
    /// Keep samples of which the classifier says another class
    #[arg(long)]
    any_label: bool,
    /// Keep at most one sample of a class from a source group
    #[arg(long)]
    one_per_group: bool,
    /// Images per forward
    #[arg(long, default_value_t = 16)]
    batch: usize,
}

pub(crate) fn run(common: &Common, args: &SelectArgs) -> Result<Outcome> {
    let method = Method::parse(&args.score)?;
    let options =
        SelectOptions { method, gamma: args.gamma, max_cosine: args.max_cosine, k: args.k, label_gate: !args.any_label, one_per_group: args.one_per_group };
    let device = common.open_device()?;
    let candidates = select::candidates(&args.out)?;
    let network = Network::load(&args.classifier)?;
    let cancel = progress::interruption()?;
    let real = match &args.reference {
        Some(path) => Reference::read(path)?,
        None => of_data_set(common, args, (&device, &network), &cancel)?,
    };
    let samples: Vec<(String, PathBuf)> = candidates.iter().map(|c| (c.sample_id.clone(), c.image.clone())).collect();
    let synthetic = network.extract(common, &device, &samples, args.batch, &cancel)?;
    for (id, fact) in real.features.skipped.iter().chain(&synthetic.skipped) {
        eprintln!("skipped {id}: {fact}");
    }
    let selection = select::select(&real.features, &real.labels(), &candidates, &synthetic, &options)?;
    let path = selection.write(&args.out)?;
    print(common, args, &selection, &path.display().to_string())?;
    let clean = real.features.skipped.is_empty() && synthetic.skipped.is_empty();
    Ok(if clean { Outcome::Done } else { Outcome::DoneWithFailures })
}

/// Features of the data set's images: of an earlier selection where they are the same images, else computed and written beside it.
fn of_data_set(common: &Common, args: &SelectArgs, (device, network): (&Device, &Network), cancel: &AtomicBool) -> Result<Reference> {
    let set = dataset::open(common, &args.data.options())?;
    let images: Vec<(String, PathBuf)> = set.items.iter().map(|item| (item.id.clone(), item.image.clone())).collect();
    let kept_file = args.out.join("real_features.safetensors");
    let features = match reusable(&kept_file, network, &images) {
        Some(features) => {
            common.say(format_args!("real features: taken from {}", kept_file.display()));
            features
        }
        None => {
            let features = network.extract(common, device, &images, args.batch, cancel)?;
            features.write(&kept_file)?;
            features
        }
    };
    let classes: HashMap<&str, &str> = set.items.iter().map(|item| (item.id.as_str(), item.class.as_str())).collect();
    let labels = features.ids.iter().map(|id| classes.get(id.as_str()).copied().unwrap_or_default().to_string()).collect();
    Ok(Reference { features, labels })
}

/// Features of an earlier selection, when they are of these images by this classifier.
fn reusable(path: &std::path::Path, network: &Network, images: &[(String, PathBuf)]) -> Option<Features> {
    let features = Features::read(path).ok()?;
    let same = features.classifier.sha256 == network.classifier().sha256 && features.ids.iter().eq(images.iter().map(|(id, _)| id));
    same.then_some(features)
}

fn print(common: &Common, args: &SelectArgs, selection: &Selection, path: &str) -> Result<()> {
    if common.json {
        let classes: Vec<_> = selection
            .classes
            .iter()
            .map(|c| {
                json!({
                    "class": c.class, "real": c.real, "candidates": c.candidates, "unreadable": c.unreadable, "not_finite": c.not_finite,
                    "other_label": c.other_label, "duplicates": c.duplicates, "same_group": c.same_group, "passed": c.passed, "kept": c.kept,
                })
            })
            .collect();
        return speech::print_json(&json!({ "selection": path, "gamma": args.gamma, "score": args.score, "classes": classes }));
    }
    speech::print_line("class        real  candidates  other label  near copies  passed  kept")?;
    for c in &selection.classes {
        speech::print_line(&format!(
            "{:<10} {:>6} {:>11} {:>12} {:>12} {:>7} {:>5}",
            c.class, c.real, c.candidates, c.other_label, c.duplicates, c.passed, c.kept
        ))?;
    }
    speech::print_line(&format!("wrote {path}"))
}
