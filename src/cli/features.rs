//! `naevus features`: features and logits of images by an imported classifier.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::json;

use super::{Common, Outcome, progress, speech};
use crate::base::{DType, Error, Kind, Result};
use crate::driver::features::{self, Classifier, Features};
use crate::driver::transform::Transform;
use crate::driver::{files, select};
use crate::exec::Device;
use crate::models::{Component, Inputs, Model, recognise};
use crate::plan::{Options, Tape};

#[derive(clap::Args)]
pub(crate) struct FeaturesArgs {
    /// A classifier: a timm-style folder (config.json and weights) or a file of weights
    #[arg(long, value_name = "PATH")]
    classifier: PathBuf,
    /// A folder of images (folders below it are searched too) or a manifest.jsonl
    #[arg(long, value_name = "DIR|MANIFEST")]
    images: PathBuf,
    /// The file to write: features [n, d], logits [n, classes], ids in the metadata
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Images per forward
    #[arg(long, default_value_t = 16)]
    batch: usize,
}

pub(crate) fn run(common: &Common, args: &FeaturesArgs) -> Result<Outcome> {
    let device = common.open_device()?;
    let images = images(&args.images)?;
    let cancel = progress::interruption()?;
    let features = Network::load(&args.classifier)?.extract(common, &device, &images, args.batch, &cancel)?;
    features.write(&args.out)?;
    for (id, fact) in &features.skipped {
        eprintln!("skipped {id}: {fact}");
    }
    if common.json {
        speech::print_json(&json!({
            "images": features.ids.len(), "skipped": features.skipped.len(), "features": features.features.dims(),
            "classes": features.classifier.classes, "out": args.out.display().to_string(),
        }))?;
    } else {
        let dims = features.features.dims();
        speech::print_line(&format!("{} images, {} features each, {} skipped: {}", dims[0], dims[1], features.skipped.len(), args.out.display()))?;
    }
    Ok(if features.skipped.is_empty() { Outcome::Done } else { Outcome::DoneWithFailures })
}

/// A loaded classifier with its pre-processing.
pub(crate) struct Network {
    model: Box<dyn Model>,
    transform: Transform,
    classifier: Classifier,
}

impl Network {
    pub(crate) fn load(folder: &Path) -> Result<Network> {
        let model = recognise(folder)?.load()?;
        let absent = || Error::new(Kind::Usage, folder.display().to_string(), "is no classifier, expected one");
        let preprocess = model.preprocess().filter(|_| model.components().contains(&Component::Classifier)).ok_or_else(absent)?;
        let transform = Transform::of(preprocess)?;
        let classes = model.class_names().map(<[String]>::to_vec).unwrap_or_default();
        let classifier = Classifier { path: folder.display().to_string(), sha256: files::sha256_of(folder)?, classes };
        Ok(Network { transform, model, classifier })
    }

    pub(crate) fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    /// Features and logits of `images` (id, file).
    pub(crate) fn extract(&self, common: &Common, device: &Device, images: &[(String, PathBuf)], batch: usize, cancel: &AtomicBool) -> Result<Features> {
        let bar = progress::bar(common, images.len() as u64, "images");
        let mut prepare = |batch: usize| device.prepare(self.tape(batch)?, &Options::default());
        let report = |done: usize, _: usize| bar.set_position(done as u64);
        let found = features::extract(images, &self.transform, batch.max(1), self.classifier.clone(), &mut prepare, &report, cancel);
        bar.finish_and_clear();
        found
    }

    fn tape(&self, batch: usize) -> Result<Tape> {
        let [h, w] = self.transform.size;
        let mut t = Tape::new();
        let x = t.input("pixel_values", &[batch, h, w, 3], DType::F32);
        let outputs = self.model.record(&mut t, Component::Classifier, &Inputs::new([("pixel_values".to_string(), x)]))?;
        for name in ["features", "logits"] {
            let absent = || Error::new(Kind::Usage, self.classifier.path.clone(), format!("gives no {name}: the checkpoint has no classifier (num_classes 0)"));
            t.output(name, outputs.iter().find(|output| output.name == name).ok_or_else(absent)?.tensor);
        }
        Ok(t)
    }
}

/// Endings of the files that a folder's images have.
const ENDINGS: [&str; 7] = ["jpg", "jpeg", "png", "tif", "tiff", "bmp", "webp"];

/// (id, file): of a manifest its written samples, of a folder its images by their path below it.
fn images(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    if path.is_file() {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Ok(select::candidates(folder)?.into_iter().map(|c| (c.sample_id, c.image)).collect());
    }
    let mut found = Vec::new();
    collect(path, path, 8, &mut found)?;
    found.sort();
    match found.is_empty() {
        true => Err(Error::new(Kind::Data, path.display().to_string(), format!("no image in the folder, expected one of .{}", ENDINGS.join(", .")))),
        false => Ok(found),
    }
}

fn collect(root: &Path, folder: &Path, depth: usize, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, &e))? {
        let path = entry.map_err(|e| Error::io(folder, &e))?.path();
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase();
        if path.is_dir() && depth > 0 {
            collect(root, &path, depth - 1, found)?;
        } else if ENDINGS.contains(&ending.as_str()) {
            let below = path.strip_prefix(root).unwrap_or(&path).with_extension("");
            found.push((below.display().to_string(), path));
        }
    }
    Ok(())
}
