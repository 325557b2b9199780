//! Which samples of a run are kept: gates that a sample passes or not, then the best fraction of each class by its outlier score.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::base::{Array, Error, Kind, Result};
use crate::driver::dataset::plain_name;
use crate::driver::features::Features;
use crate::driver::files::write_whole;
use crate::driver::manifest;
use crate::ood::{Gaussian, Method, Neighbours, keep, knn, percentile};

/// A sample that may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub sample_id: String,
    pub class: String,
    /// Lesion or patient of the source; the source itself when the data set tells no group.
    pub group: String,
    pub image: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SelectOptions {
    /// The score that decides; both are written.
    pub method: Method,
    /// Fraction of the samples that pass the gates, in [0, 1].
    pub gamma: f64,
    /// Largest cosine to a real feature.
    pub max_cosine: f64,
    /// Neighbours of the kNN score.
    pub k: usize,
    /// A sample of which the classifier says another class fails the gate `label`.
    pub label_gate: bool,
    /// At most one kept sample of a class from a source group: the others fail the gate `group`.
    pub one_per_group: bool,
}

impl Default for SelectOptions {
    fn default() -> Self {
        SelectOptions { method: Method::Mahalanobis, gamma: 0.5, max_cosine: 0.995, k: knn::DEFAULT_K, label_gate: true, one_per_group: false }
    }
}

/// true: passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gates {
    /// The image was read and has a feature.
    pub readable: bool,
    /// Feature, logits and scores are finite.
    pub finite: bool,
    /// The classifier's first class is the sample's, or labels don't count.
    pub label: bool,
    /// No real feature is nearer than `max_cosine`.
    pub duplicate: bool,
    /// The best of its source group, or groups don't count.
    pub group: bool,
}

impl Gates {
    pub fn passed(&self) -> bool {
        self.readable && self.finite && self.label && self.duplicate && self.group
    }
}

/// A line of `selection.jsonl`. Values that are not finite are null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub sample_id: String,
    pub class: String,
    pub kept: bool,
    pub method: String,
    pub gamma: f64,
    pub score_mahalanobis: Option<f64>,
    pub score_knn: Option<f64>,
    /// Of the deciding score among the real images' own, each left out of its class: 0 to 100.
    pub percentile: Option<f64>,
    /// The classifier's first class.
    pub predicted: Option<String>,
    /// The most similar real image, of any class, and its cosine.
    pub nearest_id: Option<String>,
    pub nearest_cosine: Option<f64>,
    pub gates: Gates,
}

/// Counts of one class. A sample that fails several gates counts under each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClassSummary {
    pub class: String,
    pub real: usize,
    pub candidates: usize,
    pub unreadable: usize,
    pub not_finite: usize,
    pub other_label: usize,
    pub duplicates: usize,
    pub same_group: usize,
    pub passed: usize,
    pub kept: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Sorted by sample id.
    pub lines: Vec<Line>,
    /// Sorted by class.
    pub classes: Vec<ClassSummary>,
}

impl Selection {
    /// Writes `selection.jsonl` in the run's folder, whole or not at all.
    pub fn write(&self, out: &Path) -> Result<PathBuf> {
        let path = out.join("selection.jsonl");
        let mut text = Vec::new();
        for line in &self.lines {
            serde_json::to_writer(&mut text, line).map_err(|e| Error::new(Kind::Format, path.display().to_string(), e.to_string()))?;
            text.push(b'\n');
        }
        write_whole(&path, &text)?;
        Ok(path)
    }
}

/// Reads a `selection.jsonl`.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
    let line = |(i, line): (usize, &str)| {
        let wrong = |e: serde_json::Error| Error::new(Kind::Format, format!("{}:{}", path.display(), i + 1), format!("{e}, expected a line of a selection"));
        serde_json::from_str(line).map_err(wrong)
    };
    text.lines().enumerate().map(line).collect()
}

/// The written samples of the run in `out`, sorted by id. Fails when a manifest's name would lead out of the folder.
pub fn candidates(out: &Path) -> Result<Vec<Candidate>> {
    let path = out.join("manifest.jsonl");
    let written = manifest::read(&path)?.samples.into_values().filter(|record| record.status == manifest::WRITTEN);
    let one = |record: manifest::Record| {
        for name in [&record.sample_id, &record.class] {
            plain_name(name).ok_or_else(|| Error::new(Kind::Format, path.display().to_string(), format!("{name:?}, expected a plain file name")))?;
        }
        let image = out.join("images").join(&record.class).join(format!("{}.png", record.sample_id));
        Ok(Candidate { sample_id: record.sample_id, class: record.class, group: record.source_group.unwrap_or(record.source_id), image })
    };
    written.map(one).collect()
}

/// What the real images of one class say about a candidate.
struct Reference {
    gaussian: Gaussian,
    neighbours: Neighbours,
    /// Scores of the real images by the deciding method, each left out.
    own: Vec<f64>,
    count: usize,
}

impl Reference {
    fn fit(class: &str, real: &Features, labels: &HashMap<&str, &str>, options: &SelectOptions) -> Result<Reference> {
        let rows: Vec<usize> = (0..real.ids.len()).filter(|&i| labels.get(real.ids[i].as_str()) == Some(&class)).collect();
        if rows.len() < 2 {
            return Err(Error::new(Kind::Data, class, format!("{} real images of this class have features, expected at least 2", rows.len())));
        }
        let data: Vec<f32> = rows.iter().flat_map(|&i| real.row(i)).copied().collect();
        let features = Array::new(&[rows.len(), real.features.shape.last()], data)?;
        let gaussian = Gaussian::fit(&features).map_err(|e| e.within(class))?;
        let neighbours = Neighbours::fit(&features, options.k).map_err(|e| e.within(class))?;
        let own = match options.method {
            Method::Mahalanobis => gaussian.left_out_scores(&features)?,
            Method::Knn => neighbours.left_out_scores()?,
        };
        Ok(Reference { gaussian, neighbours, own, count: rows.len() })
    }
}

/// Scores and gates every candidate and keeps the best. `real`: features of the real images; `labels`: their (id, class);
/// `synthetic`: features of the candidates by the same classifier, those that could not be read left out.
pub fn select(real: &Features, labels: &[(&str, &str)], candidates: &[Candidate], synthetic: &Features, options: &SelectOptions) -> Result<Selection> {
    check(real, synthetic, candidates, options)?;
    let labels: HashMap<&str, &str> = labels.iter().copied().collect();
    let mut references = BTreeMap::new();
    for candidate in candidates {
        if !references.contains_key(candidate.class.as_str()) {
            references.insert(candidate.class.as_str(), Reference::fit(&candidate.class, real, &labels, options)?);
        }
    }
    let all = Neighbours::fit(&real.features, 1)?;
    let rows: HashMap<&str, usize> = synthetic.ids.iter().enumerate().map(|(i, id)| (id.as_str(), i)).collect();
    let judge = |candidate: &Candidate| {
        let row = rows.get(candidate.sample_id.as_str()).copied();
        judge(candidate, row, &references[candidate.class.as_str()], &all, real, synthetic, options)
    };
    let mut judged: Vec<(Line, f64, &str)> =
        candidates.par_iter().map(|c| judge(c).map(|(line, score)| (line, score, c.group.as_str()))).collect::<Result<_>>()?;
    judged.sort_by(|a, b| a.0.sample_id.cmp(&b.0.sample_id));
    let mut classes = Vec::new();
    for (class, reference) in &references {
        let mut of_class: Vec<&mut (Line, f64, &str)> = judged.iter_mut().filter(|j| j.0.class == *class).collect();
        if options.one_per_group {
            best_of_groups(&mut of_class);
        }
        let passing: Vec<usize> = (0..of_class.len()).filter(|&i| of_class[i].0.gates.passed()).collect();
        let scores: Vec<(f64, &str)> = passing.iter().map(|&i| (of_class[i].1, of_class[i].0.sample_id.as_str())).collect();
        for i in keep::keep(options.gamma, &scores)? {
            of_class[passing[i]].0.kept = true;
        }
        classes.push(summary(class, reference.count, of_class.iter().map(|j| &j.0)));
    }
    Ok(Selection { lines: judged.into_iter().map(|(line, ..)| line).collect(), classes })
}

fn check(real: &Features, synthetic: &Features, candidates: &[Candidate], options: &SelectOptions) -> Result<()> {
    let (a, b) = (&real.classifier, &synthetic.classifier);
    if a.sha256 != b.sha256 || a.classes != b.classes || real.features.shape.last() != synthetic.features.shape.last() {
        let fact = format!("real features are of {} ({}), the samples' of {} ({}), expected one classifier", a.path, a.sha256, b.path, b.sha256);
        return Err(Error::new(Kind::Usage, "--classifier", fact));
    }
    if !(-1.0..=1.0).contains(&options.max_cosine) {
        return Err(Error::new(Kind::Usage, "--max-cosine", format!("{}, expected -1 to 1", options.max_cosine)));
    }
    keep::kept_count(options.gamma, 0)?;
    match candidates.iter().find(|c| !a.classes.contains(&c.class)) {
        Some(c) => Err(Error::new(Kind::Data, "--classifier", format!("does not know the class `{}`, it has {}", c.class, a.classes.join(", ")))),
        None if candidates.is_empty() => Err(Error::new(Kind::Data, "selection", "the run has no written samples, expected at least 1")),
        None => Ok(()),
    }
}

fn judge(
    candidate: &Candidate,
    row: Option<usize>,
    reference: &Reference,
    all: &Neighbours,
    real: &Features,
    synthetic: &Features,
    options: &SelectOptions,
) -> Result<(Line, f64)> {
    let mut line = Line {
        sample_id: candidate.sample_id.clone(),
        class: candidate.class.clone(),
        kept: false,
        method: options.method.name().to_string(),
        gamma: options.gamma,
        score_mahalanobis: None,
        score_knn: None,
        percentile: None,
        predicted: None,
        nearest_id: None,
        nearest_cosine: None,
        gates: Gates { group: true, ..Gates::default() },
    };
    let Some(row) = row else { return Ok((line, f64::NAN)) };
    let feature = synthetic.row(row);
    let (mahalanobis, knn) = (reference.gaussian.score(feature)?, reference.neighbours.score(feature)?);
    let score = if options.method == Method::Mahalanobis { mahalanobis } else { knn };
    let nearest = all.nearest(feature)?;
    let predicted = synthetic.predicted(row).map(|i| synthetic.classifier.classes[i].clone());
    line.gates.readable = true;
    line.gates.finite = mahalanobis.is_finite() && knn.is_finite() && predicted.is_some();
    line.gates.label = !options.label_gate || predicted.as_ref() == Some(&candidate.class);
    line.gates.duplicate = nearest.is_some_and(|(_, cosine)| cosine <= options.max_cosine);
    line.score_mahalanobis = Some(mahalanobis).filter(|v| v.is_finite());
    line.score_knn = Some(knn).filter(|v| v.is_finite());
    line.percentile = Some(percentile(&reference.own, score)).filter(|v| v.is_finite());
    line.predicted = predicted;
    line.nearest_id = nearest.map(|(i, _)| real.ids[i].clone());
    line.nearest_cosine = nearest.map(|(_, cosine)| cosine);
    Ok((line, score))
}

/// Fails the gate `group` of all that pass but are not the best of their group.
fn best_of_groups(of_class: &mut [&mut (Line, f64, &str)]) {
    let mut order: Vec<usize> = (0..of_class.len()).filter(|&i| of_class[i].0.gates.passed()).collect();
    order.sort_by(|&a, &b| keep::compare((of_class[a].1, &of_class[a].0.sample_id), (of_class[b].1, &of_class[b].0.sample_id)));
    let mut seen = HashSet::new();
    for i in order {
        of_class[i].0.gates.group = seen.insert(of_class[i].2);
    }
}

fn summary<'a>(class: &str, real: usize, lines: impl Iterator<Item = &'a Line>) -> ClassSummary {
    let mut s = ClassSummary { class: class.to_string(), real, ..ClassSummary::default() };
    for Line { gates, kept, .. } in lines {
        s.candidates += 1;
        s.unreadable += usize::from(!gates.readable);
        s.not_finite += usize::from(gates.readable && !gates.finite);
        s.other_label += usize::from(gates.readable && !gates.label);
        s.duplicates += usize::from(gates.readable && !gates.duplicate);
        s.same_group += usize::from(!gates.group);
        s.passed += usize::from(gates.passed());
        s.kept += usize::from(*kept);
    }
    s
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
