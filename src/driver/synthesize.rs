//! The main job: samples of rare classes, one record each, resumed where an earlier run stopped.
//!
//! Sample k of a class is a function of the settings, the class and k: its source, its noise and its place in the output do not
//! depend on the batch, the shard, the order or the device, beyond floating point.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use crate::base::{Array, Error, Kind, Result, rng};
use crate::diffusion::detail;
use crate::diffusion::inpaint::{Batch, Format, Inpainter, Painted, Prepare};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::region::{Region, composite_u8};
use crate::diffusion::{Schedule, Scheduler};
use crate::driver::dataset::{DataSet, Item, plain_name};
use crate::driver::manifest::{self, Manifest, Record};
use crate::driver::run_settings::{RUN_TOML, RunSettings};
use crate::driver::source_image::{self, SourceImage};
use crate::driver::sources::{Policy, Sources, job as noise_key};
use crate::driver::{clock, files, png_file};
use crate::models::InpaintModel;

/// File name of the manifest in the output folder.
pub const MANIFEST: &str = "manifest.jsonl";

/// What a run is made of. The device stands behind the `prepare` that [`synthesize`] is given.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    pub model: &'a InpaintModel,
    pub scheduler: &'a Scheduler,
    pub data: &'a DataSet,
    pub settings: &'a RunSettings,
    pub out: &'a Path,
    /// As the manifest names them.
    pub device: &'a str,
    pub precision: &'a str,
    /// Whether batches may be halved where the device takes no more.
    pub may_halve: bool,
    /// Whether the run ends at the first values that are not finite, with the error that names the layer: f16 overflows where f32
    /// does not.
    pub ends_at_nonfinite: bool,
}

/// What a run tells while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// Samples that this run will make, and those that are there already.
    Planned {
        samples: usize,
        resumed: usize,
    },
    /// Device memory of the plans that encode, denoise and decode, in bytes, and how they are cut where the whole does not fit.
    Prepared {
        batch: usize,
        memory: [u64; 3],
        notes: &'a [String],
    },
    /// The device did not take a batch; the next one that is tried.
    Halved {
        batch: usize,
        error: &'a Error,
    },
    /// Steps done of the batch in flight.
    Step {
        done: usize,
        of: usize,
        images: usize,
    },
    Written(&'a Record),
    /// A source that can't be used; another one stands in.
    Skipped {
        source_id: &'a str,
        error: &'a Error,
    },
    Failed {
        sample_id: &'a str,
        error: &'a Error,
    },
}

/// What became of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub written: usize,
    /// Sources that could not be used.
    pub skipped: usize,
    /// Samples that could not be made.
    pub failed: usize,
    /// Samples that were there already.
    pub resumed: usize,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
}

impl Summary {
    /// Whether everything that was asked for is there.
    pub fn is_clean(&self) -> bool {
        self.skipped == 0 && self.failed == 0 && !self.interrupted
    }
}

/// A sample to make.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Task {
    /// Position in the run's classes.
    class: usize,
    k: u64,
}

/// A class of the run.
struct Class {
    name: String,
    label: usize,
    sources: Sources,
}

/// A sample with its source, ready for the model.
struct Ready {
    task: Task,
    item: usize,
    source: SourceImage,
}

/// SHA-256 of the ids, classes and groups of the images that can be sources: those with a mask.
pub fn dataset_sha256(data: &DataSet) -> String {
    let line = |item: &Item| format!("{}\t{}\t{}\n", item.id, item.class, item.group.as_deref().unwrap_or(""));
    let lines: String = data.items.iter().filter(|item| item.mask.is_some()).map(line).collect();
    files::sha256(lines.as_bytes())
}

/// Makes the samples that the settings ask for and the output folder does not hold yet.
///
/// A source that can't be used is skipped, told and counted, and the next one stands in. A batch with values that are not finite
/// fails and the run goes on, unless the job ends there. Once `stop` is set, the batch in flight is finished and the run ends. Fails before any work when the
/// settings, the data set or the folder can't be used, and later only when the device or the disk does; the manifest is then whole.
pub fn synthesize(job: &Job, prepare: &mut Prepare, stop: &AtomicBool, on_event: &mut dyn FnMut(Event)) -> Result<Summary> {
    let schedule = job.settings.sampling.schedule(job.scheduler)?;
    let sources: Vec<&Item> = job.data.items.iter().filter(|item| item.mask.is_some()).collect();
    let classes = classes(job, &sources)?;
    let (manifest, done) = open_output(job)?;
    let mut tasks = tasks(job, &classes);
    let wanted = tasks.len();
    tasks.retain(|task| !done.contains(&job.sample_id(&classes[task.class].name, task.k)));
    let mut summary = Summary { resumed: wanted - tasks.len(), ..Summary::default() };
    tasks.truncate(job.settings.execution.limit.unwrap_or(usize::MAX));
    on_event(Event::Planned { samples: tasks.len(), resumed: summary.resumed });
    if tasks.is_empty() {
        return Ok(summary);
    }
    let mut batch = even_batch(tasks.len(), job.settings.execution.batch);
    let inpainter = loop {
        match job.inpainter(batch, prepare) {
            Err(error) if error.kind() == Kind::Limit && job.may_halve && batch > 1 => {
                batch = even_batch(tasks.len(), batch / 2);
                on_event(Event::Halved { batch, error: &error });
            }
            made => break made?,
        }
    };
    on_event(Event::Prepared { batch, memory: inpainter.memory(), notes: &inpainter.notes() });
    let mut run = Run { job, schedule, sources, classes, manifest, inpainter, unusable: BTreeSet::new(), summary: &mut summary, on_event };
    for chunk in tasks.chunks(batch) {
        if stop.load(Ordering::Relaxed) {
            run.summary.interrupted = true;
            break;
        }
        run.batch(chunk)?;
    }
    Ok(summary)
}

impl Job<'_> {
    /// The plans of batches of `batch` images, as `prepare` makes them.
    pub fn inpainter(&self, batch: usize, prepare: &mut Prepare) -> Result<Inpainter> {
        Inpainter::new(self.model, self.scheduler, self.format(batch), prepare)
    }

    /// Samples of this shard that a whole run makes.
    pub fn samples(&self) -> usize {
        let shard = self.settings.execution.shard;
        let all = self.settings.classes.values().map(|&n| (0..n as u64).filter(|&k| shard.holds(k)).count()).sum::<usize>();
        all.min(self.settings.execution.limit.unwrap_or(usize::MAX))
    }

    fn format(&self, batch: usize) -> Format {
        let size = self.model.index.image_size;
        let sampling = &self.settings.sampling;
        Format {
            batch,
            height: size,
            width: size,
            guidance: sampling.guidance as f32,
            stochastic: self.scheduler.is_stochastic(sampling.eta),
            posterior: sampling.posterior,
            tiles: sampling.tiles,
        }
    }

    fn sample_id(&self, class: &str, k: u64) -> String {
        format!("{class}_s{}_{k:06}", self.settings.sampling.seed)
    }

    fn image_path(&self, class: &str, sample_id: &str) -> PathBuf {
        self.out.join("images").join(class).join(format!("{sample_id}.png"))
    }
}

/// The classes of the run, in the order of the model's labels, with their pools of sources.
fn classes(job: &Job, sources: &[&Item]) -> Result<Vec<Class>> {
    let known = &job.model.index.class_names;
    let sampling = &job.settings.sampling;
    let source_classes: Vec<&str> = sources.iter().map(|item| item.class.as_str()).collect();
    if let Some(name) = job.settings.classes.keys().find(|name| !known.contains(name)) {
        let fact = format!("the model has no class `{name}`, it has {}", known.join(", "));
        return Err(Error::new(Kind::Data, "--classes", fact));
    }
    let wanted = known.iter().enumerate().filter(|(_, name)| job.settings.classes.get(*name).is_some_and(|&count| count > 0));
    let class = |(label, name): (usize, &String)| {
        plain_name(name).ok_or_else(|| Error::new(Kind::Config, "class_names", format!("`{name}` can't be the name of a folder")))?;
        // ISIC 2019 writes DF where HAM10000 writes df.
        let same = |other: &&String| other.eq_ignore_ascii_case(name);
        let in_data = job.data.classes.iter().find(|other| *other == name).or_else(|| job.data.classes.iter().find(same));
        let needs_own = matches!(sampling.sources, Policy::SameClass | Policy::SameClassThenAny);
        if needs_own && !in_data.is_some_and(|own| source_classes.contains(&own.as_str())) {
            let fact = format!("the data set has no image of this class with a mask, it has classes {}; --sources any needs none", job.data.classes.join(", "));
            return Err(Error::new(Kind::Data, name.clone(), fact));
        }
        let pools = Sources::new(&source_classes, in_data.unwrap_or(name), label, sampling.sources, sampling.seed)?;
        Ok(Class { name: name.clone(), label, sources: pools })
    };
    wanted.map(class).collect()
}

/// Every sample of this shard, class by class.
fn tasks(job: &Job, classes: &[Class]) -> Vec<Task> {
    let shard = job.settings.execution.shard;
    let of = |(at, class): (usize, &Class)| {
        let count = job.settings.classes.get(&class.name).map_or(0, |&n| n as u64);
        (0..count).filter(|&k| shard.holds(k)).map(|k| Task { class: at, k }).collect::<Vec<_>>()
    };
    classes.iter().enumerate().flat_map(of).collect()
}

/// The size of batches of at most `most` that wastes least: 17 samples by at most 8 are three batches of 6.
fn even_batch(samples: usize, most: usize) -> usize {
    let batches = samples.div_ceil(most.max(1)).max(1);
    samples.div_ceil(batches)
}

/// Makes the folder, holds its earlier settings against these, writes run.toml. Returns the ids of samples that are there.
fn open_output(job: &Job) -> Result<(Manifest, BTreeSet<String>)> {
    files::make_folder(job.out)?;
    let (run_toml, path) = (job.out.join(RUN_TOML), job.out.join(MANIFEST));
    let (manifest, records) = Manifest::open(&path)?;
    let mut settings = job.settings.clone();
    if !records.samples.is_empty() {
        if !run_toml.exists() {
            let fact = format!("{} samples are here, but not the {RUN_TOML} that made them; take another --out", records.samples.len());
            return Err(Error::new(Kind::Data, job.out.display().to_string(), fact));
        }
        let earlier = RunSettings::read(&run_toml)?;
        job.settings.sampling.check_resumes(&earlier.sampling, &run_toml.display().to_string())?;
        merge(&mut settings.classes, earlier.classes);
    }
    settings.write(&run_toml)?;
    let is_there = |record: &Record| record.status == manifest::WRITTEN && job.image_path(&record.class, &record.sample_id).is_file();
    Ok((manifest, records.samples.into_values().filter(is_there).map(|record| record.sample_id).collect()))
}

/// What a folder holds after both runs: the larger count of each class.
fn merge(classes: &mut BTreeMap<String, usize>, earlier: BTreeMap<String, usize>) {
    for (name, count) in earlier {
        let entry = classes.entry(name).or_insert(0);
        *entry = count.max(*entry);
    }
}

/// Largest difference of bytes outside the hole; `rgb` has three a pixel.
fn outside_difference(rgb: &[u8], input: &[u8], hole: &Region) -> u8 {
    let pairs = rgb.iter().zip(input).enumerate();
    pairs.filter(|(i, _)| !hole.open[i / 3]).map(|(_, (a, b))| a.abs_diff(*b)).max().unwrap_or(0)
}

struct Run<'a, 'b> {
    job: &'a Job<'a>,
    schedule: Schedule,
    sources: Vec<&'a Item>,
    classes: Vec<Class>,
    manifest: Manifest,
    inpainter: Inpainter,
    /// Sources that were told to be unusable.
    unusable: BTreeSet<usize>,
    summary: &'b mut Summary,
    on_event: &'b mut dyn FnMut(Event),
}

impl Run<'_, '_> {
    /// Makes the samples of `tasks`, at most a batch of them.
    fn batch(&mut self, tasks: &[Task]) -> Result<()> {
        let ready: Vec<Ready> = tasks.iter().filter_map(|task| self.load(task)).collect();
        if ready.is_empty() {
            return Ok(());
        }
        match self.paint(&ready) {
            Ok(painted) => ready.iter().enumerate().try_for_each(|(i, ready)| self.write(ready, &painted, i)),
            Err(error) if error.kind() == Kind::Numeric && !self.job.ends_at_nonfinite => {
                ready.iter().for_each(|ready| self.fail(&ready.task, &error));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The first usable source of a sample.
    fn load(&mut self, task: &Task) -> Option<Ready> {
        let (size, dilate) = (self.job.model.index.image_size, self.job.settings.sampling.dilate_px);
        for item in self.classes[task.class].sources.choices(task.k) {
            if self.unusable.contains(&item) {
                continue;
            }
            match source_image::load(self.sources[item], size, dilate) {
                Ok(source) => return Some(Ready { task: task.clone(), item, source }),
                Err(error) => {
                    self.unusable.insert(item);
                    self.summary.skipped += 1;
                    (self.on_event)(Event::Skipped { source_id: &self.sources[item].id, error: &error });
                }
            }
        }
        self.fail(task, &Error::new(Kind::Data, self.classes[task.class].name.clone(), "none of its sources can be used"));
        None
    }

    fn fail(&mut self, task: &Task, error: &Error) {
        self.summary.failed += 1;
        let sample_id = self.job.sample_id(&self.classes[task.class].name, task.k);
        (self.on_event)(Event::Failed { sample_id: &sample_id, error });
    }

    /// Runs the model and gives its image the source's detail. The last sample fills up a batch that is not full: rows do not see each other.
    fn paint(&mut self, ready: &[Ready]) -> Result<Painted> {
        let [n, h, w, c] = self.inpainter.latent_shape();
        let size = self.job.model.index.image_size;
        let rows: Vec<&Ready> = (0..n).map(|i| &ready[i.min(ready.len() - 1)]).collect();
        let labels: Vec<usize> = rows.iter().map(|row| self.classes[row.task.class].label).collect();
        let seed = self.job.settings.sampling.seed;
        let noise = |step: u64| {
            let row = |(row, &label): (&&Ready, &usize)| rng::normal(seed, noise_key(label, row.task.k), step, h * w * c);
            Array::new(&[n, h, w, c], rows.iter().zip(&labels).flat_map(row).collect())
        };
        let posterior_noise = match self.job.settings.sampling.posterior {
            Posterior::Mode => None,
            Posterior::Sample => Some([noise(rng::POSTERIOR_NOISE)?, noise(rng::MASKED_POSTERIOR_NOISE)?]),
        };
        let pixels = rows.iter().flat_map(|row| &row.source.rgb.data).map(|&v| f32::from(v) / 255.0).collect();
        let batch = Batch {
            image: &Array::new(&[n, size, size, 3], pixels)?,
            holes: &rows.iter().map(|row| row.source.hole.clone()).collect::<Vec<_>>(),
            class_labels: &labels.iter().map(|&label| label as u32).collect::<Vec<_>>(),
            noise: &noise(rng::INITIAL_NOISE)?,
            variance_noise: &|k| noise(k as u64),
            posterior_noise: posterior_noise.as_ref().map(|[image, masked]| [image, masked]),
        };
        let (of, images) = (self.schedule.rows.len(), ready.len());
        let on_event = &mut self.on_event;
        let mut on_step = |done| {
            on_event(Event::Step { done, of, images });
            ControlFlow::Continue(())
        };
        let mut painted = self.inpainter.paint(&batch, &self.schedule, false, &mut on_step)?;
        let amount = self.job.settings.sampling.detail as f32;
        if amount > 0.0 {
            let trip = self.inpainter.decode(&painted.image_latents)?;
            let image = size * size * 3;
            let sources = batch.image.data.chunks(image).zip(trip.data.chunks(image));
            for (decoded, (source, trip)) in painted.decoded.data.chunks_mut(image).zip(sources) {
                detail::restore(decoded, source, trip, [size, 3], amount, self.inpainter.downscale() as f32 / 4.0);
            }
        }
        Ok(painted)
    }

    /// Writes sample `i` of the batch: its image, then its line.
    fn write(&mut self, ready: &Ready, painted: &Painted, i: usize) -> Result<()> {
        let class = &self.classes[ready.task.class];
        let input = &ready.source.rgb;
        let (decoded, hole) = (&painted.decoded.data[i * input.data.len()..][..input.data.len()], &painted.holes[i]);
        let rgb = composite_u8(&input.data, decoded, hole, 3, self.job.settings.sampling.feather_px);
        let sample_id = self.job.sample_id(&class.name, ready.task.k);
        let path = self.job.image_path(&class.name, &sample_id);
        path.parent().map_or(Ok(()), files::make_folder)?;
        let sampling = &self.job.settings.sampling;
        let output_sha256 = png_file::write(&path, input.width, input.height, &rgb, &png_file::texts(&sample_id, &sampling.sha256()))?;
        let item = self.sources[ready.item];
        let record = Record {
            sample_id,
            class: class.name.clone(),
            class_index: class.label,
            source_id: item.id.clone(),
            source_group: item.group.clone(),
            source_sha256: ready.source.source_sha256.clone(),
            mask_sha256: ready.source.mask_sha256.clone(),
            output_sha256,
            prompt: sampling.conditioning.prompts.get(&class.name).cloned(),
            negative_prompt: sampling.conditioning.negative_prompt.clone(),
            embeddings: sampling.conditioning.embeddings(),
            seed: sampling.seed,
            job: noise_key(class.label, ready.task.k),
            scheduler: sampling.scheduler.clone(),
            steps: sampling.steps,
            guidance: sampling.guidance,
            strength: sampling.strength,
            eta: sampling.eta,
            width: input.width,
            height: input.height,
            outside_mask_max_abs_diff: outside_difference(&rgb, &input.data, hole),
            device: self.job.device.to_string(),
            precision: self.job.precision.to_string(),
            model_sha256: sampling.model_sha256.clone(),
            loras: sampling.loras.clone(),
            naevus_version: env!("CARGO_PKG_VERSION").to_string(),
            created_at: clock::rfc3339(SystemTime::now()),
            status: manifest::WRITTEN.to_string(),
        };
        self.manifest.append(&record)?;
        self.summary.written += 1;
        (self.on_event)(Event::Written(&record));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_even() {
        for (samples, most, want) in [(16, 5, 4), (17, 8, 6), (3, 8, 3), (8, 8, 8), (1, 1, 1), (5, 0, 1)] {
            assert_eq!(even_batch(samples, most), want, "{samples} by {most}");
        }
    }

    #[test]
    fn differences_count_outside_the_hole_only() {
        let hole = Region { width: 2, height: 1, open: vec![true, false] };
        assert_eq!(outside_difference(&[9, 9, 9, 1, 2, 3], &[0, 0, 0, 1, 2, 3], &hole), 0);
        assert_eq!(outside_difference(&[0, 0, 0, 1, 7, 3], &[0, 0, 0, 1, 2, 9], &hole), 6);
        assert_eq!(outside_difference(&[5; 3], &[0; 3], &Region { width: 1, height: 1, open: vec![true] }), 0);
    }

    #[test]
    fn the_sum_of_a_data_set_is_that_of_its_sources() {
        let item = |id: &str, mask: bool| Item {
            id: id.to_string(),
            class: "df".to_string(),
            group: None,
            image: PathBuf::from("elsewhere").join(id),
            mask: mask.then(|| PathBuf::from("m")),
        };
        let set = |items: Vec<Item>| dataset_sha256(&DataSet { items, ..DataSet::default() });
        let one = set(vec![item("a", true)]);
        assert_eq!(one, set(vec![item("a", true), item("b", false)]), "an image without a mask is no source");
        assert_ne!(one, set(vec![item("a", true), item("b", true)]));
        assert_ne!(one, set(vec![item("b", true)]));
    }
}
