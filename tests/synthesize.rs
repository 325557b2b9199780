//! The main job on a tiny model and a small data set: what is written, what is resumed, and what bad input does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use naevus::base::{Error, Kind, Result};
use naevus::diffusion::Scheduler;
use naevus::diffusion::inpaint::Prepare;
use naevus::diffusion::posterior::Posterior;
use naevus::diffusion::tiles::Tiles;
use naevus::driver::conditioning::Conditioning;
use naevus::driver::dataset::{DataSet, DataSetOptions};
use naevus::driver::manifest::{self, Record};
use naevus::driver::run_settings::{Data, Execution, RunSettings, Sampling, Shard};
use naevus::driver::sources::Policy;
use naevus::driver::synthesize::{Event, Job, Summary, dataset_sha256, synthesize};
use naevus::driver::{files, image, png_file, source_image};
use naevus::exec::Device;
use naevus::models::InpaintModel;
use naevus::plan::{Options, Tape};

const SIZE: usize = 32;

/// A data set in a folder of its own, the tiny model, and settings.
struct Bench {
    dir: tempfile::TempDir,
    model: InpaintModel,
    scheduler: Scheduler,
    settings: RunSettings,
}

/// Pixels of item `key`: no two images are alike.
fn pixel(key: usize, x: usize, y: usize) -> [u8; 3] {
    [(x * 5 + key * 31) as u8, (y * 7 + key * 13) as u8, (x * y + key) as u8]
}

fn write(path: &Path, width: usize, height: usize, f: impl Fn(usize, usize) -> [u8; 3]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let rgb: Vec<u8> = (0..width * height).flat_map(|i| f(i % width, i / width)).collect();
    png_file::write(path, width, height, &rgb, &[]).unwrap();
}

impl Bench {
    /// Three images of df, two of bcc, one of vasc; larger than the model's.
    fn new() -> Bench {
        Self::of("inpaint-tiny")
    }

    /// With the model of that name.
    fn of(model: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let model_folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(model);
        let model = InpaintModel::load(&model_folder).unwrap();
        let scheduler = Scheduler::read(&model.index.scheduler_config).unwrap();
        for (key, (class, id)) in [("bcc", "b0"), ("bcc", "b1"), ("df", "d0"), ("df", "d1"), ("df", "d2"), ("vasc", "v0")].into_iter().enumerate() {
            write(&dir.path().join(format!("data/{class}/{id}.png")), 60, 48, |x, y| pixel(key, x, y));
            write(&dir.path().join(format!("data/masks/{id}_mask.png")), 60, 48, |x, y| {
                [if (20..36).contains(&x) && (14 + key..30).contains(&y) { 255 } else { 0 }; 3]
            });
        }
        let sampling = Sampling {
            model_sha256: files::sha256_of(&model_folder).unwrap(),
            model: model_folder,
            dataset_sha256: String::new(),
            conditioning: Conditioning::default(),
            seed: 5,
            scheduler: "ddim".to_string(),
            steps: 3,
            guidance: 2.0,
            strength: 1.0,
            eta: 0.5,
            sources: Policy::SameClassThenAny,
            dilate_px: 1,
            feather_px: 2,
            detail: 0.0,
            posterior: Posterior::Mode,
            tiles: Tiles::Auto,
            loras: Vec::new(),
        };
        let execution = Execution { device: "cpu".to_string(), precision: "f32".to_string(), batch: 2, shard: Shard::WHOLE, limit: None };
        let classes = [("df".to_string(), 4), ("vasc".to_string(), 3)].into();
        let data = Data { dataset: dir.path().join("data"), ..Data::default() };
        let settings = RunSettings { naevus_version: "test".to_string(), sampling, data, execution, classes };
        Bench { dir, model, scheduler, settings }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self) -> DataSet {
        DataSet::open(&DataSetOptions { root: Some(self.path("data")), ..DataSetOptions::default() }).unwrap()
    }

    /// Runs `settings` into the folder `out` and writes down what is told.
    fn run(&self, settings: &RunSettings, out: &Path, stop: &AtomicBool) -> (Result<Summary>, Vec<String>) {
        self.run_where(settings, out, stop, false, &mut |tape: Tape| Device::Cpu.prepare(tape, &Options::default()))
    }

    /// The same on a device of one's own.
    fn run_where(&self, settings: &RunSettings, out: &Path, stop: &AtomicBool, may_halve: bool, prepare: &mut Prepare) -> (Result<Summary>, Vec<String>) {
        let data = self.data();
        let mut settings = settings.clone();
        settings.sampling.dataset_sha256 = dataset_sha256(&data);
        let job = Job {
            model: &self.model,
            scheduler: &self.scheduler,
            data: &data,
            settings: &settings,
            out,
            device: "cpu",
            precision: "f32",
            may_halve,
            ends_at_nonfinite: false,
        };
        let mut told = vec![];
        let mut on_event = |event: Event| match event {
            Event::Planned { samples, resumed } => told.push(format!("planned {samples}, {resumed} are there")),
            Event::Halved { batch, error } => told.push(format!("{}: batches of {batch}", error.fact())),
            Event::Prepared { notes, .. } => told.extend(notes.iter().cloned()),
            Event::Step { done, of, images } => told.push(format!("step {done} of {of}, {images} images")),
            Event::Written(record) => {
                told.push(format!("written {}", record.sample_id));
                assert!(out.join(format!("images/{}/{}.png", record.class, record.sample_id)).is_file(), "a line before its image");
            }
            Event::Skipped { source_id, error } => told.push(format!("skipped {source_id}: {}", error.fact())),
            Event::Failed { sample_id, error } => told.push(format!("failed {sample_id}: {error}")),
        };
        let result = synthesize(&job, prepare, stop, &mut on_event);
        (result, told)
    }

    fn go(&self, settings: &RunSettings, out: &str) -> Summary {
        self.run(settings, &self.path(out), &AtomicBool::new(false)).0.unwrap()
    }

    fn records(&self, out: &str) -> BTreeMap<String, Record> {
        manifest::read(&self.path(out).join("manifest.jsonl")).unwrap().samples
    }

    fn pixels(&self, out: &str, record: &Record) -> Vec<u8> {
        let image = image::read_rgb(&self.path(out).join(format!("images/{}/{}.png", record.class, record.sample_id))).unwrap();
        assert_eq!((image.width, image.height), (SIZE, SIZE));
        image.data
    }

    /// What makes a sample, apart from when: its line without the date, and its pixels.
    fn samples(&self, out: &str) -> BTreeMap<String, (Record, Vec<u8>)> {
        let timeless = |record: Record| Record { created_at: String::new(), ..record };
        self.records(out).into_iter().map(|(id, record)| (id, (timeless(record.clone()), self.pixels(out, &record)))).collect()
    }
}

#[test]
fn samples_are_written_with_all_that_made_them() {
    let bench = Bench::new();
    assert_eq!(bench.go(&bench.settings, "out"), Summary { written: 7, ..Summary::default() });
    let data = bench.data();
    let records = bench.records("out");
    let ids: Vec<&str> = records.keys().map(String::as_str).collect();
    assert_eq!(ids, ["df_s5_000000", "df_s5_000001", "df_s5_000002", "df_s5_000003", "vasc_s5_000000", "vasc_s5_000001", "vasc_s5_000002"]);
    for record in records.values() {
        let path = bench.path("out").join(format!("images/{}/{}.png", record.class, record.sample_id));
        assert_eq!(files::sha256_of(&path).unwrap(), record.output_sha256);
        assert_eq!(png_file::read_text(&path, "Synthetic").unwrap().as_deref(), Some("true"));
        assert_eq!(png_file::read_text(&path, "Sample").unwrap().as_deref(), Some(record.sample_id.as_str()));
        let item = data.items.iter().find(|item| item.id == record.source_id).unwrap();
        assert_eq!(files::sha256_of(&item.image).unwrap(), record.source_sha256);
        assert_eq!(files::sha256_of(item.mask.as_ref().unwrap()).unwrap(), record.mask_sha256);
        assert_eq!((record.class_index, record.status.as_str()), (bench.model.index.class_names.iter().position(|c| *c == record.class).unwrap(), "written"));
        // Outside the hole the sample is its source; inside it is something else.
        let source = source_image::load(item, SIZE, bench.settings.sampling.dilate_px).unwrap();
        let hole = source.hole.max_pool(8).enlarge(8);
        let pixels = bench.pixels("out", record);
        let differs = |i: &usize| pixels[*i] != source.rgb.data[*i];
        assert!(!(0..pixels.len()).filter(|i| !hole.open[i / 3]).any(|i| differs(&i)), "a known pixel changed");
        assert!((0..pixels.len()).filter(differs).count() > 100, "nothing was painted");
        assert_eq!(record.outside_mask_max_abs_diff, 0);
    }
    let df: Vec<&str> = records.values().take(3).map(|r| r.source_id.as_str()).collect();
    assert_eq!(df.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "each own image once first: {df:?}");
    assert_eq!(records["vasc_s5_000000"].source_id, "v0");
    let kept = RunSettings::read(&bench.path("out/run.toml")).unwrap();
    assert_eq!(kept.classes, bench.settings.classes);
}

/// The law: neither batch nor shard nor order nor other samples show in a sample.
#[test]
fn a_sample_depends_on_settings_class_and_number_alone() {
    let bench = Bench::new();
    bench.go(&bench.settings, "whole");
    let whole = bench.samples("whole");
    let mut again = bench.settings.clone();
    again.execution.batch = 2;
    bench.go(&again, "again");
    assert_eq!(bench.samples("again"), whole, "the same run gives other bytes");

    let mut sharded = bench.settings.clone();
    for index in 1..=3 {
        sharded.execution.shard = Shard { index, of: 3 };
        sharded.execution.batch = index as usize;
        bench.go(&sharded, "sharded");
    }
    let mut alone = bench.settings.clone();
    alone.classes = [("vasc".to_string(), 2)].into();
    bench.go(&alone, "alone");
    for out in ["sharded", "alone"] {
        let samples = bench.samples(out);
        assert_eq!(samples.len(), if out == "alone" { 2 } else { whole.len() });
        for (id, (record, pixels)) in samples {
            let (want, want_pixels) = &whole[&id];
            assert_eq!((&record.source_id, record.job), (&want.source_id, want.job));
            let worst = pixels.iter().zip(want_pixels).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(1), "{out} {id}: {worst:?} of 255");
        }
    }
}

/// A device that has no memory for more than two images in its denoising plan.
#[test]
fn a_batch_that_the_device_refuses_is_halved_and_samples_stay_the_same() {
    let bench = Bench::new();
    let mut settings = bench.settings.clone();
    settings.execution.batch = 7;
    let mut small = |tape: Tape| {
        let images = tape.inputs().find(|(name, _)| *name == "noise").map_or(0, |(_, info)| info.shape.dims()[0]);
        match images > 2 {
            true => Err(Error::new(Kind::Limit, "state", format!("no memory for {images} images"))),
            false => Device::Cpu.prepare(tape, &Options::default()),
        }
    };
    let never = AtomicBool::new(false);
    let (summary, told) = bench.run_where(&settings, &bench.path("halved"), &never, true, &mut small);
    assert_eq!(summary.unwrap(), Summary { written: 7, ..Summary::default() });
    let halved: Vec<&String> = told.iter().filter(|line| line.contains("batches of")).collect();
    assert_eq!(halved, ["no memory for 7 images: batches of 3", "no memory for 3 images: batches of 1"]);
    bench.go(&bench.settings, "whole");
    assert_eq!(bench.samples("halved"), bench.samples("whole"));
    let (error, told) = bench.run_where(&settings, &bench.path("refused"), &never, false, &mut small);
    assert_eq!(error.unwrap_err().kind(), Kind::Limit);
    assert!(told.iter().all(|line| !line.contains("batches of")));
}

#[test]
fn a_run_goes_on_where_it_stopped() {
    let bench = Bench::new();
    bench.go(&bench.settings, "whole");
    let mut settings = bench.settings.clone();
    settings.execution.limit = Some(3);
    assert_eq!(bench.go(&settings, "out"), Summary { written: 3, ..Summary::default() });
    assert_eq!(bench.go(&settings, "out"), Summary { written: 3, resumed: 3, ..Summary::default() });
    // A torn line and a lost image are made again.
    let lost = bench.path("out/images/df/df_s5_000001.png");
    std::fs::remove_file(&lost).unwrap();
    let manifest = bench.path("out/manifest.jsonl");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, &text[..text.len() - 40]).unwrap();
    settings.execution.limit = None;
    assert_eq!(bench.go(&settings, "out"), Summary { written: 3, resumed: 4, ..Summary::default() });
    assert!(lost.is_file());
    let ids = |out: &str| bench.records(out).into_keys().collect::<Vec<_>>();
    assert_eq!(ids("out"), ids("whole"));
    // More samples of the same settings, another class among them; the file then says what the folder holds.
    settings.classes = [("df".to_string(), 2), ("bcc".to_string(), 1)].into();
    assert_eq!(bench.go(&settings, "out"), Summary { written: 1, resumed: 2, ..Summary::default() });
    let classes = RunSettings::read(&bench.path("out/run.toml")).unwrap().classes;
    assert_eq!(classes, [("bcc".to_string(), 1), ("df".to_string(), 4), ("vasc".to_string(), 3)].into());
    assert_eq!(bench.go(&settings, "out"), Summary { resumed: 3, ..Summary::default() });
}

#[test]
fn other_settings_do_not_resume() {
    let bench = Bench::new();
    bench.go(&bench.settings, "out");
    let before = bench.samples("out");
    let mut settings = bench.settings.clone();
    settings.sampling.guidance = 4.0;
    let error = bench.run(&settings, &bench.path("out"), &AtomicBool::new(false)).0.unwrap_err();
    assert!(error.to_string().contains("run.toml: guidance: 2, but this run has 4"), "{error}");
    write(&bench.path("data/df/d9.png"), 60, 48, |x, y| pixel(9, x, y));
    write(&bench.path("data/masks/d9_mask.png"), 60, 48, |x, _| [if x == 30 { 255 } else { 0 }; 3]);
    let error = bench.run(&bench.settings, &bench.path("out"), &AtomicBool::new(false)).0.unwrap_err();
    assert!(error.to_string().contains("dataset_sha256"), "{error}");
    std::fs::remove_file(bench.path("out/run.toml")).unwrap();
    let error = bench.run(&bench.settings, &bench.path("out"), &AtomicBool::new(false)).0.unwrap_err();
    assert!(error.to_string().contains("7 samples are here, but not the run.toml"), "{error}");
    assert_eq!(bench.samples("out"), before);
}

#[test]
fn bad_sources_are_skipped_and_others_stand_in() {
    let bench = Bench::new();
    std::fs::write(bench.path("data/df/d0.png"), b"").unwrap();
    let whole = std::fs::read(bench.path("data/df/d1.png")).unwrap();
    std::fs::write(bench.path("data/df/d1.png"), &whole[..whole.len() / 2]).unwrap();
    write(&bench.path("data/masks/v0_mask.png"), 16, 16, |x, _| [if x < 8 { 255 } else { 0 }; 3]);
    let (summary, told) = bench.run(&bench.settings, &bench.path("out"), &AtomicBool::new(false));
    assert_eq!(summary.unwrap(), Summary { written: 7, skipped: 3, ..Summary::default() });
    let skipped: Vec<&String> = told.iter().filter(|line| line.starts_with("skipped")).collect();
    assert!(skipped.iter().any(|line| line.contains("v0: the mask is 16x16, expected 60x48")), "{skipped:?}");
    assert_eq!(skipped.len(), 3, "each bad source is told once: {skipped:?}");
    assert!(bench.records("out").values().all(|r| ["b0", "b1", "d2"].contains(&r.source_id.as_str())));
    // A shard that never met the bad sources before makes the same choices.
    let mut shard = bench.settings.clone();
    shard.execution.shard = Shard { index: 2, of: 2 };
    bench.go(&shard, "shard");
    for (id, record) in bench.records("shard") {
        assert_eq!(record.source_id, bench.records("out")[&id].source_id);
    }
}

#[test]
fn a_class_whose_sources_are_all_bad_fails_and_the_others_do_not() {
    let bench = Bench::new();
    std::fs::write(bench.path("data/vasc/v0.png"), b"not an image").unwrap();
    let mut settings = bench.settings.clone();
    settings.sampling.sources = Policy::SameClass;
    let (summary, told) = bench.run(&settings, &bench.path("out"), &AtomicBool::new(false));
    let summary = summary.unwrap();
    assert_eq!(summary, Summary { written: 4, skipped: 1, failed: 3, ..Summary::default() });
    assert!(!summary.is_clean());
    assert_eq!(told.iter().filter(|line| line.ends_with("vasc: none of its sources can be used")).count(), 3, "{told:?}");
}

/// A stop in the middle of a batch: the batch is finished and written, the next one is not begun.
#[test]
fn a_stop_ends_the_run_between_batches() {
    let bench = Bench::new();
    let (data, stop, out) = (bench.data(), AtomicBool::new(false), bench.path("out"));
    let mut settings = bench.settings.clone();
    settings.sampling.dataset_sha256 = dataset_sha256(&data);
    let job = Job {
        model: &bench.model,
        scheduler: &bench.scheduler,
        data: &data,
        settings: &settings,
        out: &out,
        device: "cpu",
        precision: "f32",
        may_halve: false,
        ends_at_nonfinite: false,
    };
    let mut steps = vec![];
    let mut on_event = |event: Event| {
        if let Event::Step { done, of, images } = event {
            steps.push((done, of, images));
            if steps.len() == 4 {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    let summary = synthesize(&job, &mut |tape: Tape| Device::Cpu.prepare(tape, &Options::default()), &stop, &mut on_event).unwrap();
    assert_eq!(steps, [(1, 3, 2), (2, 3, 2), (3, 3, 2), (1, 3, 2), (2, 3, 2), (3, 3, 2)]);
    assert_eq!(summary, Summary { written: 4, interrupted: true, ..Summary::default() });
    assert_eq!(bench.go(&bench.settings, "out"), Summary { written: 3, resumed: 4, ..Summary::default() });
}

#[test]
fn what_can_not_start_says_why() {
    let bench = Bench::new();
    let fails = |change: &dyn Fn(&mut RunSettings), out: &Path| {
        let mut settings = bench.settings.clone();
        change(&mut settings);
        bench.run(&settings, out, &AtomicBool::new(false)).0.unwrap_err()
    };
    let out = bench.path("out");
    let rows: [(&dyn Fn(&mut RunSettings), &str); 5] = [
        (&|s| s.classes = [("scc".to_string(), 1)].into(), "--classes: the model has no class `scc`, it has bcc, df, vasc"),
        (&|s| s.sampling.steps = 0, "--steps: 0, expected 1 to 1000"),
        (&|s| s.sampling.eta = 2.0, "--eta: 2, expected 0 to 1"),
        (&|s| s.sampling.strength = 0.1, "--strength: 0.1 of 3 steps is less than one step"),
        (&|s| s.sampling.guidance = f64::INFINITY, "--guidance: inf"),
    ];
    for (change, want) in rows {
        let error = fails(change, &out).to_string();
        assert!(error.starts_with(want), "{error}");
    }
    assert!(!out.exists(), "a run that can't start leaves nothing");
    std::fs::write(bench.path("file"), b"").unwrap();
    let error = fails(&|_| {}, &bench.path("file/out"));
    assert_eq!(error.kind(), Kind::Io);
    // A class without images, and one whose images have no masks.
    std::fs::remove_file(bench.path("data/masks/v0_mask.png")).unwrap();
    let error = fails(&|_| {}, &out).to_string();
    assert!(error.starts_with("vasc: the data set has no image of this class with a mask"), "{error}");
    let mut any = bench.settings.clone();
    any.sampling.sources = Policy::Any;
    assert_eq!(bench.go(&any, "out").written, 7);
}

/// Each sample has noise of its own for the posterior of its image: not the batch's, and not none.
#[test]
fn a_sampled_posterior_is_the_samples_own() {
    let bench = Bench::of("inpaint-posterior");
    let mut settings = bench.settings.clone();
    settings.sampling.posterior = Posterior::Sample;
    bench.go(&settings, "two");
    settings.execution.batch = 3;
    bench.go(&settings, "three");
    assert_eq!(bench.samples("two"), bench.samples("three"));
    settings.sampling.posterior = Posterior::Mode;
    bench.go(&settings, "mode");
    let (sampled, mode) = (bench.samples("two"), bench.samples("mode"));
    assert!(sampled.iter().zip(&mode).all(|((_, a), (_, b))| a.1 != b.1), "a sample is the mode's");
}

/// Detail is the source's own, in proportion to what was asked for, and in the hole only.
#[test]
fn detail_comes_back_inside_the_hole() {
    let bench = Bench::new();
    let with = |out: &str, detail: f64, batch: usize| {
        let mut settings = bench.settings.clone();
        (settings.sampling.detail, settings.sampling.feather_px, settings.execution.batch) = (detail, 0, batch);
        bench.go(&settings, out);
        bench.samples(out)
    };
    let (none, half, all) = (with("none", 0.0, 2), with("half", 0.5, 2), with("all", 1.0, 2));
    assert_eq!(with("threes", 1.0, 3), all, "detail depends on the batch");
    let (mut moved, mut clear) = (0, 0);
    for ((id, (record, all)), ((_, none), (_, half))) in all.iter().zip(none.values().zip(half.values())) {
        assert_eq!(record.outside_mask_max_abs_diff, 0, "{id}");
        for ((all, none), half) in all.iter().zip(none).zip(half) {
            let [all, none, half] = [all, none, half].map(|v| i32::from(*v));
            moved += i32::from(all != none);
            // Where nothing is clamped the half is in the middle, but for roundings.
            if (1..255).contains(&all) {
                clear += 1;
                assert!((all + none - 2 * half).abs() <= 2, "{id}: {none}, {half}, {all}");
            }
        }
    }
    assert!(moved > 1000 && clear > 1000, "{moved} values moved");
    let mut other = bench.settings.clone();
    (other.sampling.detail, other.sampling.feather_px) = (0.25, 0);
    let (error, _) = bench.run(&other, &bench.path("all"), &AtomicBool::new(false));
    assert!(error.unwrap_err().to_string().contains("detail"), "other detail resumes");
}
