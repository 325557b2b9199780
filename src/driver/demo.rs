//! The demo's job: its settings, what the judge says of the samples, and the pictures that show them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::{Error, Kind, Result};
use crate::diffusion::Scheduler;
use crate::diffusion::posterior::Posterior;
use crate::diffusion::region::{Region, masked_image};
use crate::diffusion::tiles::Tiles;
use crate::driver::conditioning::Conditioning;
use crate::driver::contact_sheet::{Cell, Mark, Sheet};
use crate::driver::dataset::{DataSet, Item};
use crate::driver::demo_models::DemoModels;
use crate::driver::features::Features;
use crate::driver::image::{Rgb8, read_rgb};
use crate::driver::manifest::Record;
use crate::driver::run_settings::{Data, Execution, RunSettings, Sampling, Shard};
use crate::driver::select::{Candidate, Line, SelectOptions, Selection};
use crate::driver::sources::{MAX_SAMPLES, Policy};
use crate::driver::synthesize::dataset_sha256;
use crate::driver::{files, png_file, source_image};
use crate::models::InpaintModel;
use crate::models::inpaint_index::{HolePixels, HoleToLatent};

/// Rare classes that the demo makes, and what the sheet calls them.
pub const CLASSES: [[&str; 2]; 3] = [["df", "dermatofibroma"], ["vasc", "vascular lesion"], ["akiec", "actinic keratosis"]];
/// docs/demo.md has what other values give.
const GUIDANCE: f64 = 5.0;
/// Far wider than the model's own: a lesion of another class has another shape, and needs room.
const DILATE_PX: usize = 20;
/// The model is never quite of the skin's colour: no seam.
const FEATHER_PX: usize = 8;
const BATCH: usize = 8;
/// Rows of the sheet and of the strip, and pixels of their pictures.
const SHEET_ROWS: usize = 24;
const SHEET_SIDE: usize = 192;
const STRIP_ROWS: usize = 3;
const STRIP_SIDE: usize = 128;
/// Where the hole is, in pictures of it.
const HOLE_GREY: u8 = 225;

/// What the user may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    pub seed: u64,
    pub per_class: usize,
    pub steps: usize,
}

impl Wishes {
    /// Fails on a value out of its range, before anything is written.
    pub fn check(&self) -> Result<()> {
        for (flag, value) in [("--per-class", self.per_class), ("--steps", self.steps)] {
            if !(1..=1000).contains(&value) {
                return Err(Error::new(Kind::Usage, format!("{flag} {value}"), "expected 1 to 1000"));
            }
        }
        // TOML's integers are signed.
        if self.seed > i64::MAX as u64 {
            return Err(Error::new(Kind::Usage, format!("--seed {}", self.seed), format!("expected 0 to {}", i64::MAX)));
        }
        Ok(())
    }
}

/// Settings of the run: sample k of every class repaints the same source.
pub fn settings(wishes: Wishes, models: &DemoModels, (model, scheduler): (&InpaintModel, &Scheduler), data: &DataSet, device: &str) -> Result<RunSettings> {
    let known = &model.index.class_names;
    if let Some([name, _]) = CLASSES.iter().find(|[name, _]| !known.iter().any(|k| k == name)) {
        let fact = format!("the model has no class `{name}`, it has {}", known.join(", "));
        return Err(Error::new(Kind::Config, models.inpaint().display().to_string(), fact));
    }
    let sampling = Sampling {
        model: models.inpaint(),
        model_sha256: files::sha256_of(&models.inpaint())?,
        dataset_sha256: dataset_sha256(data),
        conditioning: Conditioning::default(),
        seed: wishes.seed,
        scheduler: scheduler.class.name().to_string(),
        steps: wishes.steps,
        guidance: GUIDANCE,
        strength: 1.0,
        eta: 0.0,
        sources: Policy::Paired,
        dilate_px: DILATE_PX,
        feather_px: FEATHER_PX,
        detail: 0.0,
        posterior: Posterior::Mode,
        tiles: Tiles::Auto,
        loras: Vec::new(),
    };
    let execution = Execution { device: device.to_string(), precision: "f32".to_string(), batch: BATCH, shard: Shard::WHOLE, limit: None };
    let classes = CLASSES.iter().map(|[name, _]| (name.to_string(), wishes.per_class)).collect();
    let data = Data { dataset: models.sources(), ..Data::default() };
    Ok(RunSettings { naevus_version: env!("CARGO_PKG_VERSION").to_string(), sampling, data, execution, classes })
}

/// A line of `verdicts.jsonl`: which class the judge sees.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub sample_id: String,
    pub class: String,
    /// The judge's first class, and its probability among all.
    pub judge: String,
    pub probability: f64,
    pub agrees: bool,
}

/// What the judge says of the candidates that it could read, sorted as they are.
pub fn verdicts(candidates: &[Candidate], judge: &Features) -> Vec<Verdict> {
    let width = judge.logits.shape.last();
    let of = |candidate: &Candidate| {
        let row = judge.ids.iter().position(|id| *id == candidate.sample_id)?;
        let first = judge.predicted(row)?;
        let logits = &judge.logits.data[row * width..(row + 1) * width];
        let sum: f64 = logits.iter().map(|&v| f64::from(v - logits[first]).exp()).sum();
        let name = judge.classifier.classes.get(first)?.clone();
        let agrees = name == candidate.class;
        Some(Verdict { sample_id: candidate.sample_id.clone(), class: candidate.class.clone(), judge: name, probability: 1.0 / sum, agrees })
    };
    candidates.iter().filter_map(of).collect()
}

/// Writes `verdicts.jsonl` in the run's folder.
pub fn write_verdicts(out: &Path, verdicts: &[Verdict]) -> Result<PathBuf> {
    let path = out.join("verdicts.jsonl");
    let mut text = Vec::new();
    for verdict in verdicts {
        serde_json::to_writer(&mut text, verdict).map_err(|e| Error::new(Kind::Format, path.display().to_string(), e.to_string()))?;
        text.push(b'\n');
    }
    files::write_whole(&path, &text)?;
    Ok(path)
}

/// Everything that the pictures show.
pub struct Shown<'a> {
    pub out: &'a Path,
    pub model: &'a InpaintModel,
    pub data: &'a DataSet,
    pub records: &'a BTreeMap<String, Record>,
    pub selection: &'a Selection,
    pub verdicts: &'a [Verdict],
}

/// Samples of one source, in the order of [`CLASSES`].
struct Group<'a> {
    source: &'a Item,
    samples: Vec<&'a Record>,
    /// Kept samples, those of the judge's class, and less the sum of percentiles: more is better to show.
    merit: (usize, usize, i64),
}

impl Shown<'_> {
    /// Writes `contact_sheet.png` in the run's folder.
    pub fn write_sheet(&self) -> Result<PathBuf> {
        let groups = self.groups();
        let mut sheet = Sheet {
            title: "naevus demo: rare lesions in the same skin".to_string(),
            subtitle: "Synthetic images, not for diagnosis. No patient is shown: the sources too are made by the models.".to_string(),
            heads: heads(),
            ..Sheet::default()
        };
        for group in groups.iter().take(SHEET_ROWS) {
            sheet.rows.push(self.row(group, true)?);
        }
        sheet.notes = notes();
        if groups.len() > SHEET_ROWS {
            sheet.notes.push(format!("Rows 1 to {SHEET_ROWS} of {}.", groups.len()));
        }
        write_picture(&self.out.join("contact_sheet.png"), &sheet.draw(SHEET_SIDE)?)
    }

    /// Writes the rows that are best to show, without title and scores.
    pub fn write_strip(&self, path: &Path) -> Result<PathBuf> {
        let mut groups = self.groups();
        groups.sort_by_key(|group| std::cmp::Reverse(group.merit));
        let rows = groups.iter().take(STRIP_ROWS).map(|group| self.row(group, false)).collect::<Result<_>>()?;
        let strip = Sheet { heads: heads(), rows, ..Sheet::default() };
        write_picture(path, &strip.draw(STRIP_SIDE)?)
    }

    /// By number of the sample; a number that a class lacks is left out.
    fn groups(&self) -> Vec<Group<'_>> {
        let numbers: BTreeSet<u64> = self.records.values().map(|record| record.job % MAX_SAMPLES).collect();
        let of = |k: u64| {
            let sample = |[name, _]: &[&str; 2]| self.records.values().find(|record| record.class == *name && record.job % MAX_SAMPLES == k);
            let samples = CLASSES.iter().map(sample).collect::<Option<Vec<_>>>()?;
            let source = self.data.items.iter().find(|item| item.id == samples[0].source_id)?;
            let lines: Vec<&Line> = samples.iter().filter_map(|record| self.line(record)).collect();
            let agreeing = samples.iter().filter(|record| self.verdict(record).is_some_and(|verdict| verdict.agrees)).count();
            let percentiles: f64 = lines.iter().map(|line| line.percentile.unwrap_or(100.0)).sum();
            let merit = (lines.iter().filter(|line| line.kept).count() + agreeing, agreeing, -percentiles as i64);
            Some(Group { source, samples, merit })
        };
        numbers.into_iter().filter_map(of).collect()
    }

    fn line(&self, record: &Record) -> Option<&Line> {
        self.selection.lines.iter().find(|line| line.sample_id == record.sample_id)
    }

    fn verdict(&self, record: &Record) -> Option<&Verdict> {
        self.verdicts.iter().find(|verdict| verdict.sample_id == record.sample_id)
    }

    /// source | hole | samples.
    fn row(&self, group: &Group, is_scored: bool) -> Result<Vec<Cell>> {
        let source = source_image::load(group.source, self.model.index.image_size, DILATE_PX)?;
        let hole = repainted(self.model, &source.hole);
        let area = 100.0 * hole.area() as f64 / hole.open.len() as f64;
        let pixels: Vec<f32> = source.rgb.data.iter().map(|&v| f32::from(v)).collect();
        let masked = masked_image(&pixels, &hole, 3, f32::from(HOLE_GREY)).iter().map(|&v| v as u8).collect();
        let masked = Rgb8::new(hole.width, hole.height, masked)?;
        let plain = |picture: Rgb8, captions: [String; 2]| Cell { picture, mark: None, captions, is_framed: false };
        let told = |text: String| if is_scored { text } else { String::new() };
        let mut cells = vec![
            plain(source.rgb, [told(group.source.id.clone()), told(format!("made as {}", group.source.class))]),
            plain(masked, [told(format!("{area:.0} % of the image")), String::new()]),
        ];
        for record in &group.samples {
            cells.push(self.cell(record, is_scored)?);
        }
        Ok(cells)
    }

    fn cell(&self, record: &Record, is_scored: bool) -> Result<Cell> {
        let picture = read_rgb(&self.out.join("images").join(&record.class).join(format!("{}.png", record.sample_id)))?;
        if !is_scored {
            return Ok(Cell { picture, mark: None, captions: Default::default(), is_framed: false });
        }
        let (line, verdict) = (self.line(record), self.verdict(record));
        let mark = verdict.map(|verdict| if verdict.agrees { Mark::Agrees } else { Mark::Differs });
        let judge = verdict.map_or("judge: nothing".to_string(), |v| format!("judge: {} {:.0} %", v.judge, v.probability * 100.0));
        Ok(Cell { picture, mark, captions: [judge, line.map_or(String::new(), told)], is_framed: line.is_some_and(|line| line.kept) })
    }
}

fn notes() -> Vec<String> {
    let o = SelectOptions::default();
    vec![
        "Green dot: the judge, a classifier apart from the selection, sees the class; amber ring: it sees another.".to_string(),
        format!("Green frame: kept. The scoring classifier sees the class, no near copy (cosine {}), best {:.0} % by score.", o.max_cosine, o.gamma * 100.0),
        "Score: Mahalanobis distance to real images of the class; %: how many of those lie nearer than the sample.".to_string(),
    ]
}

fn heads() -> Vec<[String; 2]> {
    let first = [["source", ""], ["hole", ""]];
    first.iter().chain(&CLASSES).map(|head| head.map(String::from)).collect()
}

/// What the selection says of a sample, in a few words.
fn told(line: &Line) -> String {
    let score = line.score_mahalanobis.map_or("no score".to_string(), |score| format!("score {score:.0}"));
    let percentile = line.percentile.map_or(String::new(), |p| format!(", {p:.0} %"));
    match (line.kept, &line.predicted) {
        (true, _) => format!("kept: {score}{percentile}"),
        (false, Some(seen)) if !line.gates.label => format!("{score}: seen as {seen}"),
        (false, _) if line.gates.readable && !line.gates.duplicate => "near copy".to_string(),
        _ => format!("{score}{percentile}"),
    }
}

/// The pixels that the model repaints for a hole: whole cells of its latents, or the hole.
fn repainted(model: &InpaintModel, hole: &Region) -> Region {
    let cell = model.index.image_size / model.latent_shape()[1];
    match (model.index.hole_pixels, model.index.hole_to_latent) {
        (HolePixels::Mask, _) => hole.clone(),
        (HolePixels::LatentCell, HoleToLatent::MaxPool) => hole.max_pool(cell).enlarge(cell),
        (HolePixels::LatentCell, HoleToLatent::Nearest) => hole.nearest(cell).enlarge(cell),
    }
}

fn write_picture(path: &Path, image: &Rgb8) -> Result<PathBuf> {
    let texts = [("Synthetic", "true"), ("Disclaimer", "not for diagnosis"), ("Software", concat!("naevus ", env!("CARGO_PKG_VERSION")))];
    png_file::write(path, image.width, image.height, &image.data, &texts)?;
    Ok(path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Array;
    use crate::driver::features::Classifier;
    use crate::driver::select::Gates;

    fn candidate(id: &str, class: &str) -> Candidate {
        Candidate { sample_id: id.to_string(), class: class.to_string(), group: String::new(), image: PathBuf::new() }
    }

    #[test]
    fn verdicts_are_the_softmax_of_the_first_class() {
        let logits = Array::new(&[3, 2], vec![0.0, 3f32.ln(), 2.0, 2.0, f32::NAN, 0.0]).unwrap();
        let classifier = Classifier { classes: vec!["df".to_string(), "nv".to_string()], ..Classifier::default() };
        let judge = Features { ids: ["a", "b", "c"].map(String::from).to_vec(), features: Array::zeros(&[3, 1]), logits, classifier, skipped: vec![] };
        let found = verdicts(&[candidate("b", "df"), candidate("a", "df"), candidate("c", "df"), candidate("absent", "df")], &judge);
        let told: Vec<(&str, &str, bool)> = found.iter().map(|v| (v.sample_id.as_str(), v.judge.as_str(), v.agrees)).collect();
        assert_eq!(told, [("b", "df", true), ("a", "nv", false)]);
        assert!((found[0].probability - 0.5).abs() < 1e-6 && (found[1].probability - 0.75).abs() < 1e-6);
    }

    #[test]
    fn what_is_said_of_a_sample_is_why_it_was_kept_or_not() {
        let passed = Gates { readable: true, finite: true, label: true, duplicate: true, group: true };
        let line = |kept, gates| Line {
            sample_id: "a".into(),
            class: "df".into(),
            kept,
            method: "mahalanobis".into(),
            gamma: 0.5,
            score_mahalanobis: Some(120.4),
            score_knn: None,
            percentile: Some(33.3),
            predicted: Some("nv".into()),
            nearest_id: None,
            nearest_cosine: None,
            gates,
        };
        assert_eq!(told(&line(true, passed)), "kept: score 120, 33 %");
        assert_eq!(told(&line(false, passed)), "score 120, 33 %");
        assert_eq!(told(&line(false, Gates { label: false, ..passed })), "score 120: seen as nv");
        assert_eq!(told(&line(false, Gates { duplicate: false, ..passed })), "near copy");
    }
}
