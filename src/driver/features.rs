//! Features and logits of many images by a classifier, and the file that holds them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use rayon::prelude::*;

use crate::base::{Array, Error, Kind, Result};
use crate::driver::image::read_rgb;
use crate::driver::transform::Transform;
use crate::plan::Session;
use crate::weights::{Store, Writer};

/// Which classifier computed features.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classifier {
    /// Its folder, as the user gave it.
    pub path: String,
    /// Of its weights and settings.
    pub sha256: String,
    /// Names in the order of the logits; empty when the classifier tells none.
    pub classes: Vec<String>,
}

/// What a classifier says about images.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// One for each row.
    pub ids: Vec<String>,
    /// `[n, d]`, the input of the last linear layer.
    pub features: Array,
    /// `[n, classes]`.
    pub logits: Array,
    pub classifier: Classifier,
    /// Id and error of each image that could not be used. Not kept in the file.
    pub skipped: Vec<(String, String)>,
}

/// Images of one batch, decoded and normalised: `[batch, H, W, 3]`, the rows after the last id are zero.
struct Batch {
    pixels: Vec<f32>,
    ids: Vec<String>,
    skipped: Vec<(String, String)>,
    images: usize,
}

/// Runs the classifier over `images` (id, file). `prepare(batch)` gives a session of a plan with the input `pixel_values`
/// `[batch, H, W, 3]` and the outputs `features` `[batch, d]` and `logits` `[batch, classes]`; it is asked once.
/// The next batch is decoded while one is computed. `progress` is told images done and all images.
///
/// An image that can't be read is skipped and listed. Fails when all are, when the session fails, and with
/// [`Kind::Interrupted`] once `cancel` is set.
pub fn extract(
    images: &[(String, PathBuf)],
    transform: &Transform,
    batch: usize,
    classifier: Classifier,
    prepare: &mut dyn FnMut(usize) -> Result<Box<dyn Session>>,
    progress: &dyn Fn(usize, usize),
    cancel: &AtomicBool,
) -> Result<Features> {
    if images.is_empty() || batch == 0 {
        return Err(Error::new(Kind::Usage, "features", format!("{} images in batches of {batch}, expected at least 1 of each", images.len())));
    }
    let batch = batch.min(images.len());
    let mut session = prepare(batch)?;
    let mut rows = Rows::default();
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        // Ends by itself when the receiver is gone.
        scope.spawn(move || images.chunks(batch).map(|chunk| decode(chunk, batch, transform)).all(|decoded| sender.send(decoded).is_ok()));
        let mut done = 0;
        for decoded in receiver {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Interrupted, "features", format!("stopped after {done} of {} images", images.len())));
            }
            done += decoded.images;
            rows.add(decoded, session.as_mut(), batch)?;
            progress(done, images.len());
        }
        Ok(())
    })?;
    rows.finish(classifier)
}

fn decode(images: &[(String, PathBuf)], batch: usize, transform: &Transform) -> Batch {
    let read = |(id, path): &(String, PathBuf)| (id.clone(), read_rgb(path).and_then(|image| transform.apply(&image)));
    let arrays: Vec<(String, Result<Array>)> = images.par_iter().map(read).collect();
    let [h, w] = transform.size;
    let mut out = Batch { pixels: Vec::with_capacity(batch * h * w * 3), ids: Vec::new(), skipped: Vec::new(), images: images.len() };
    for (id, array) in arrays {
        match array {
            Ok(array) => {
                out.pixels.extend(array.data);
                out.ids.push(id);
            }
            Err(error) => out.skipped.push((id, error.to_string())),
        }
    }
    out.pixels.resize(batch * h * w * 3, 0.0);
    out
}

#[derive(Default)]
struct Rows {
    ids: Vec<String>,
    skipped: Vec<(String, String)>,
    features: Vec<f32>,
    logits: Vec<f32>,
}

impl Rows {
    fn add(&mut self, batch: Batch, session: &mut dyn Session, size: usize) -> Result<()> {
        self.skipped.extend(batch.skipped);
        if batch.ids.is_empty() {
            return Ok(());
        }
        session.write("pixel_values", &batch.pixels)?;
        session.run()?;
        for (name, into) in [("features", &mut self.features), ("logits", &mut self.logits)] {
            let values = session.read(name)?;
            match values.dims() {
                &[n, width] if n == size => into.extend(&values.data[..batch.ids.len() * width]),
                _ => return Err(Error::new(Kind::Shape, name, format!("the classifier gives {}, expected [{size}, width]", values.shape))),
            }
        }
        self.ids.extend(batch.ids);
        Ok(())
    }

    fn finish(self, classifier: Classifier) -> Result<Features> {
        let n = self.ids.len();
        if n == 0 {
            let first = self.skipped.first().map(|(_, error)| error.as_str()).unwrap_or_default();
            return Err(Error::new(Kind::Data, "features", format!("none of {} images can be used; first: {first}", self.skipped.len())));
        }
        let (d, c) = (self.features.len() / n, self.logits.len() / n);
        let features = Array::new(&[n, d], self.features)?;
        Features { ids: self.ids, features, logits: Array::new(&[n, c], self.logits)?, classifier, skipped: self.skipped }.checked("features")
    }
}

impl Features {
    /// Writes `features` and `logits`; the metadata holds `ids` and `classes` as JSON lists, `classifier` and `classifier_sha256`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut writer = Writer::new();
        writer.f32("features", self.features.dims(), self.features.data.clone())?;
        writer.f32("logits", self.logits.dims(), self.logits.data.clone())?;
        writer.metadata("ids", &serde_json::Value::from(self.ids.clone()).to_string());
        writer.metadata("classes", &serde_json::Value::from(self.classifier.classes.clone()).to_string());
        writer.metadata("classifier", &self.classifier.path);
        writer.metadata("classifier_sha256", &self.classifier.sha256);
        writer.write(path)
    }

    /// Reads what [`Features::write`] wrote.
    pub fn read(path: &Path) -> Result<Features> {
        let store = Store::open(path)?;
        let place = path.display().to_string();
        let text = |name: &str| {
            let found = store.metadata().get(name);
            found
                .cloned()
                .ok_or_else(|| Error::new(Kind::Format, place.clone(), format!("no `{name}` in the metadata, expected a file that `naevus features` wrote")))
        };
        let list = |name: &str| -> Result<Vec<String>> {
            let parsed = serde_json::from_str(&text(name)?);
            parsed.map_err(|e| Error::new(Kind::Format, format!("{place}: {name}"), format!("not a JSON list of texts: {e}")))
        };
        let classifier = Classifier { path: text("classifier")?, sha256: text("classifier_sha256")?, classes: list("classes")? };
        let (features, logits) = (store.array("features")?, store.array("logits")?);
        Features { ids: list("ids")?, features, logits, classifier, skipped: Vec::new() }.checked(&place)
    }

    /// The row of features at `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        let d = self.features.shape.last();
        &self.features.data[i * d..(i + 1) * d]
    }

    /// Index of the largest logit of row `i`; None where one is not finite. The first of equal ones counts.
    pub fn predicted(&self, i: usize) -> Option<usize> {
        let c = self.logits.shape.last();
        let logits = &self.logits.data[i * c..(i + 1) * c];
        let best = (0..c).reduce(|best, k| if logits[k] > logits[best] { k } else { best });
        best.filter(|_| logits.iter().all(|v| v.is_finite()))
    }

    fn checked(self, place: &str) -> Result<Features> {
        let (n, classes) = (self.ids.len(), self.classifier.classes.len());
        let wrong = |kind, fact: String| Err(Error::new(kind, place, fact));
        match (self.features.dims(), self.logits.dims()) {
            (&[a, d], &[b, c]) if a == n && b == n && d > 0 && c > 0 => {
                if classes != 0 && classes != c {
                    return wrong(Kind::Config, format!("{c} logits, expected {classes} as the classifier has class names"));
                }
            }
            _ => return wrong(Kind::Shape, format!("features {} and logits {}, expected [{n}, d] and [{n}, classes]", self.features.shape, self.logits.shape)),
        }
        let mut sorted: Vec<&String> = self.ids.iter().collect();
        sorted.sort();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => wrong(Kind::Data, format!("id `{}` stands there twice", pair[0])),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DType;
    use crate::base::array::relative_rms;
    use crate::exec::Device;
    use crate::models::{Component, Inputs, Model, recognise};
    use crate::plan::{Options, Tape};
    use std::cell::RefCell;

    fn prepared(model: &dyn Model, batch: usize) -> Result<Box<dyn Session>> {
        let [h, w] = model.preprocess().unwrap().input_size;
        let mut t = Tape::new();
        let x = t.input("pixel_values", &[batch, h, w, 3], DType::F32);
        let outputs = model.record(&mut t, Component::Classifier, &Inputs::new([("pixel_values".to_string(), x)]))?;
        outputs.iter().for_each(|output| t.output(&output.name, output.tensor));
        Device::Cpu.prepare(t, &Options::default())
    }

    fn tiny() -> (Box<dyn Model>, Transform) {
        let model = recognise(Path::new("tests/golden/models/resnet18")).unwrap().load().unwrap();
        let transform = Transform::of(model.preprocess().unwrap()).unwrap();
        (model, transform)
    }

    fn classifier(model: &dyn Model) -> Classifier {
        Classifier { path: "c".into(), sha256: "00".into(), classes: model.class_names().unwrap_or_default().to_vec() }
    }

    /// Five images of which the second is broken.
    fn images(dir: &Path) -> Vec<(String, PathBuf)> {
        let one = |i: u32| {
            let path = dir.join(format!("{i}.png"));
            match i {
                1 => std::fs::write(&path, b"no image").unwrap(),
                _ => image::RgbImage::from_fn(50, 44, |x, y| image::Rgb([(x * i * 3) as u8, (y * 5) as u8, (x * y) as u8])).save(&path).unwrap(),
            }
            (format!("id{i}"), path)
        };
        (0..5).map(one).collect()
    }

    #[test]
    fn bad_images_are_skipped_and_batches_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let (model, transform) = tiny();
        let images = images(dir.path());
        let seen = RefCell::new(Vec::new());
        let run = |batch: usize| {
            let mut prepare = |n: usize| prepared(model.as_ref(), n);
            let progress = |done: usize, all: usize| seen.borrow_mut().push((done, all));
            extract(&images, &transform, batch, classifier(model.as_ref()), &mut prepare, &progress, &AtomicBool::new(false)).unwrap()
        };
        let two = run(2);
        assert_eq!(*seen.borrow(), [(2, 5), (4, 5), (5, 5)]);
        assert_eq!(two.ids, ["id0", "id2", "id3", "id4"]);
        assert_eq!((two.skipped.len(), two.skipped[0].0.as_str()), (1, "id1"));
        assert!(two.skipped[0].1.contains("1.png: not an image"), "{}", two.skipped[0].1);
        assert_eq!((two.features.dims(), two.logits.dims()), (&[4usize, 24][..], &[4usize, 7][..]));
        assert_ne!(two.row(0), two.row(1));
        for batch in [1, 3, 99] {
            let other = run(batch);
            assert!(relative_rms(&other.features.data, &two.features.data) < 1e-5 && other.ids == two.ids, "batch {batch}");
        }
        let path = dir.path().join("F.safetensors");
        two.write(&path).unwrap();
        assert_eq!(Features::read(&path).unwrap(), Features { skipped: Vec::new(), ..two });
    }

    #[test]
    fn jobs_that_cannot_be_done_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let (model, transform) = tiny();
        let images = images(dir.path());
        let run = |images: &[(String, PathBuf)], batch: usize, cancelled: bool, classes: usize| {
            let mut prepare = |n: usize| prepared(model.as_ref(), n);
            let classifier = Classifier { classes: vec!["x".into(); classes], ..classifier(model.as_ref()) };
            extract(images, &transform, batch, classifier, &mut prepare, &|_, _| (), &AtomicBool::new(cancelled)).map_err(|e| (e.kind(), e.to_string()))
        };
        assert_eq!(run(&[], 2, false, 7).unwrap_err().0, Kind::Usage);
        assert_eq!(run(&images, 0, false, 7).unwrap_err().0, Kind::Usage);
        assert_eq!(run(&images, 2, true, 7).unwrap_err().0, Kind::Interrupted);
        assert!(run(&images[1..2], 2, false, 7).unwrap_err().1.contains("none of 1 images can be used; first:"));
        assert!(run(&images, 2, false, 6).unwrap_err().1.contains("7 logits, expected 6"));
        let twice = [images[0].clone(), images[0].clone()];
        assert!(run(&twice, 2, false, 0).unwrap_err().1.contains("id `id0` stands there twice"));
        let mut refuse = |_: usize| Err(Error::new(Kind::Device, "gpu", "lost"));
        let lost = extract(&images, &transform, 2, classifier(model.as_ref()), &mut refuse, &|_, _| (), &AtomicBool::new(false));
        assert_eq!(lost.unwrap_err().kind(), Kind::Device);
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.safetensors");
        let write = |ids: &str, rows: usize| {
            let mut writer = Writer::new();
            writer.f32("features", &[rows, 2], vec![0.0; 2 * rows]).unwrap();
            writer.f32("logits", &[rows, 2], vec![0.0; 2 * rows]).unwrap();
            [("ids", ids), ("classes", "[]"), ("classifier", "c"), ("classifier_sha256", "0")].iter().for_each(|(k, v)| writer.metadata(k, v));
            writer.write(&path).unwrap();
            Features::read(&path).map_err(|e| e.to_string())
        };
        assert!(write("[\"a\",\"b\"]", 2).is_ok());
        assert!(write("[\"a\"]", 2).unwrap_err().contains("expected [1, d]"));
        assert!(write("{}", 2).unwrap_err().contains("not a JSON list"));
        assert!(Features::read(Path::new("tests/golden/resize.safetensors")).unwrap_err().to_string().contains("expected a file that"));
    }

    #[test]
    fn the_first_of_equal_logits_is_predicted() {
        let logits = Array::new(&[3, 3], vec![1.0, 3.0, 3.0, f32::NAN, 0.0, 1.0, -1.0, -2.0, -3.0]).unwrap();
        let ids = ["a", "b", "c"].map(String::from).to_vec();
        let features = Features { ids, features: Array::zeros(&[3, 1]), logits, classifier: Classifier::default(), skipped: vec![] };
        assert_eq!([0, 1, 2].map(|i| features.predicted(i)), [Some(1), None, Some(0)]);
    }

    /// From JPEG files to logits against PyTorch; what differs is the JPEG decoders' rounding of pixels.
    #[test]
    fn the_reference_classifier_agrees_with_pytorch_on_real_images() {
        let shared = Path::new("../shared");
        if !shared.is_dir() {
            println!("skipped: ../shared absent");
            return;
        }
        let model = recognise(&shared.join("reference/resnet18-ham128")).unwrap().load().unwrap();
        let transform = Transform::of(model.preprocess().unwrap()).unwrap();
        let golden = Store::open(&shared.join("reference/golden/resnet18.safetensors")).unwrap();
        let ids = golden.metadata()["ids"].split(',');
        let images: Vec<(String, PathBuf)> = ids.map(|id| (id.to_string(), shared.join(format!("data/ham10000/images/{id}.jpg")))).collect();
        let mut prepare = |n: usize| prepared(model.as_ref(), n);
        let got = extract(&images, &transform, 3, classifier(model.as_ref()), &mut prepare, &|_, _| (), &AtomicBool::new(false)).unwrap();
        for (name, values) in [("features", &got.features), ("logits", &got.logits)] {
            let error = relative_rms(&values.data, &golden.array(name).unwrap().data);
            println!("{name}: relative rms {error:.5}");
            assert!(error < 0.02, "{name}: {error}");
        }
    }
}
