//! Autoencoders that others trained, where ../shared is: TAEF2 and TAESANA against PyTorch's numbers, round trips of real images, and
//! the seams of tiles. tools/external_autoencoders.py makes the numbers.

use std::path::{Path, PathBuf};

use naevus::base::array::{psnr, relative_rms};
use naevus::base::{Array, DType, Result};
use naevus::diffusion::tiles::{Patchwork, Tiles};
use naevus::driver::image::read_rgb;
use naevus::exec::Device;
use naevus::exec::gpu::adapters;
use naevus::models::{Component, Inputs, Model, recognise};
use naevus::plan::{Options, Tape};
use naevus::weights::Store;

/// Relative root mean square of the difference from PyTorch.
const ALLOWED: f64 = 1e-4;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// The folder beside the repository; prints the agreed line and gives None where it is not.
fn shared() -> Option<PathBuf> {
    let path = root().join("../shared");
    if !path.join("reference/external/taef2").is_dir() {
        println!("skipped: ../shared absent");
        return None;
    }
    Some(path)
}

fn devices() -> Vec<Device> {
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped on a GPU: no adapter");
        return vec![Device::Cpu];
    }
    vec![Device::Cpu, Device::open("0").unwrap()]
}

/// A loaded half of an autoencoder.
struct Half {
    model: Box<dyn Model>,
    component: Component,
    input: &'static str,
    output: &'static str,
}

impl Half {
    fn load(path: &Path) -> Half {
        let model = recognise(path).unwrap().load().unwrap();
        let component = model.components()[0];
        let [input, output] = if component == Component::VaeEncoder { ["sample", "latents"] } else { ["latents", "sample"] };
        Half { model, component, input, output }
    }

    fn external(shared: &Path, file: &str) -> Half {
        Self::load(&shared.join("reference/external").join(file))
    }

    /// `[N, H, W, C]` through it, cut as `tiles` says; and how it was cut.
    fn run(&self, device: &Device, x: &Array, tiles: Tiles) -> (Array, Option<String>) {
        let [n, h, w, c] = x.shape.nhwc().unwrap();
        let downscale = self.model.autoencoder().unwrap().downscale;
        let per_cell = if self.component == Component::VaeEncoder { downscale } else { 1 };
        let mut record = |images: usize, [h, w]: [usize; 2]| -> Result<Tape> {
            let mut tape = Tape::new();
            let x = tape.input(self.input, &[images, h * per_cell, w * per_cell, c], DType::F32);
            let outputs = self.model.record(&mut tape, self.component, &Inputs::new([(self.input.to_string(), x)]))?;
            tape.output(self.output, outputs[0].tensor);
            Ok(tape)
        };
        let mut prepare = |tape: Tape| device.prepare(tape, &Options::default());
        let mut patchwork = Patchwork::new(n, [h / per_cell, w / per_cell], tiles, downscale, &mut record, &mut prepare).unwrap();
        let outputs = patchwork.run(self.component.name(), &[(self.input, x)], &[self.output]).unwrap();
        (outputs.into_iter().next().unwrap(), patchwork.note().map(str::to_string))
    }

    fn whole(&self, device: &Device, x: &Array) -> Array {
        self.run(device, x, Tiles::Off).0
    }
}

/// The upper left part of an image whose sides are multiples of 32, `[1, H, W, 3]` in [0, 1].
fn pixels(path: &Path) -> Array {
    let image = read_rgb(path).unwrap();
    let [h, w] = [image.height, image.width].map(|side| side / 32 * 32);
    let rows = (0..h).flat_map(|y| &image.data[y * image.width * 3..(y * image.width + w) * 3]);
    Array::new(&[1, h, w, 3], rows.map(|&v| f32::from(v) / 255.0).collect()).unwrap()
}

/// The first `count` images of a folder, by name.
fn images(folder: &Path, count: usize) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "jpg"));
    paths.sort();
    paths.truncate(count);
    paths
}

fn clamped(mut image: Array) -> Array {
    image.data.iter_mut().for_each(|v| *v = v.clamp(0.0, 1.0));
    image
}

#[test]
fn weights_made_by_others_give_pytorchs_numbers() {
    let Some(shared) = shared() else { return };
    let io = Store::open(&root().join("tests/external/autoencoders.safetensors")).unwrap();
    let array = |name: &str| io.array(name).unwrap().to_channels_last();
    let rows = [
        ("taef2/taef2_encoder.pth", "sample", "taef2/latents"),
        ("taef2/taef2_decoder.pth", "taef2/latents", "taef2/sample"),
        ("taesana/taesana_encoder.pth", "sample", "taesana/latents"),
    ];
    for device in devices() {
        for (file, input, output) in rows {
            let (ours, told) = (Half::external(&shared, file).whole(&device, &array(input)), array(output));
            let error = relative_rms(&ours.data, &told.data);
            println!("{file} on {}: relative rms {error:.1e}", device.backend());
            assert!(ours.shape == told.shape && error <= ALLOWED, "{file} on {}: {:?}, {error:e}", device.backend(), ours.shape);
        }
    }
}

#[test]
fn taef2_carries_real_images_there_and_back() {
    let Some(shared) = shared() else { return };
    let [encoder, decoder] = ["encoder", "decoder"].map(|part| Half::external(&shared, &format!("taef2/taef2_{part}.pth")));
    let devices = devices();
    for (i, path) in images(&shared.join("data/ham10000/images"), 8).iter().enumerate() {
        let image = pixels(path);
        let trip = |device: &Device| clamped(decoder.whole(device, &encoder.whole(device, &image)));
        let ours = trip(&Device::Cpu);
        let figure = psnr(&ours.data, &image.data, 1.0);
        println!("{}: {figure:.3} dB", path.file_stem().unwrap().to_string_lossy());
        assert!(figure >= 30.0, "{}: {figure} dB", path.display());
        // Software devices take seconds an image.
        for device in devices[1..].iter().filter(|_| i < 2) {
            let theirs = trip(device);
            let (error, figure) = (relative_rms(&theirs.data, &ours.data), psnr(&theirs.data, &image.data, 1.0));
            println!("  on {}: {figure:.3} dB, relative rms of the difference {error:.1e}", device.backend());
            assert!(error <= ALLOWED && figure >= 30.0, "{} on {}: {error:e}, {figure} dB", path.display(), device.backend());
        }
    }
}

/// The largest step of `a - b` across the columns (axis 2) or rows (axis 1) in `at`: the mean over each border of the difference on one
/// side less that on the other, by channel.
fn seam(a: &Array, b: &Array, axis: usize, at: &[usize]) -> f64 {
    let [_, h, w, c] = a.shape.nhwc().unwrap();
    let difference = |i: usize| f64::from(a.data[i]) - f64::from(b.data[i]);
    let step = |cut: usize, along: usize, k: usize| match axis {
        2 => difference((along * w + cut) * c + k) - difference((along * w + cut - 1) * c + k),
        _ => difference((cut * w + along) * c + k) - difference(((cut - 1) * w + along) * c + k),
    };
    let length = if axis == 2 { h } else { w };
    let mean = |cut: usize, k: usize| (0..length).map(|along| step(cut, along, k)).sum::<f64>().abs() / length as f64;
    at.iter().flat_map(|&cut| (0..c).map(move |k| (cut, k))).map(|(cut, k)| mean(cut, k)).fold(0.0, f64::max)
}

/// Tiles of 256 pixels over a real image of 600 x 450: how far from the whole, and whether a step shows where a tile begins or a fade ends.
#[test]
fn tiles_leave_no_seam() {
    let Some(shared) = shared() else { return };
    let [encoder, decoder] = ["encoder", "decoder"].map(|part| Half::external(&shared, &format!("taef2/taef2_{part}.pth")));
    for path in images(&shared.join("data/ham10000/full_600x450/images"), 1) {
        let image = pixels(&path);
        let latents = encoder.whole(&Device::Cpu, &image);
        let whole = clamped(decoder.whole(&Device::Cpu, &latents));
        let (tiled, note) = decoder.run(&Device::Cpu, &latents, Tiles::Pixels(256));
        assert_eq!(note.as_deref(), Some("in 9 tiles of 256 x 256 pixels that overlap by 64"));
        let (tiled, tiled_latents) = (clamped(tiled), encoder.run(&Device::Cpu, &image, Tiles::Pixels(256)).0);
        let trip = clamped(decoder.run(&Device::Cpu, &tiled_latents, Tiles::Pixels(256)).0);
        let figures = [psnr(&tiled.data, &whole.data, 1.0), psnr(&trip.data, &whole.data, 1.0)];
        let original = [&whole, &trip].map(|array| psnr(&array.data, &image.data, 1.0));
        println!("{}: decoded in tiles {:.2} dB, there and back in tiles {:.2} dB from the whole", path.display(), figures[0], figures[1]);
        println!("  from the original: whole {:.3} dB, in tiles {:.3} dB", original[0], original[1]);
        assert!(figures[0] >= 33.0 && figures[1] >= 40.0 && original[1] >= original[0] - 0.5, "{figures:?} {original:?}");
        for (what, image) in [("decoded", &tiled), ("there and back", &trip)] {
            let seams = [(1, vec![192, 256, 384]), (2, vec![192, 256, 384, 448])].map(|(axis, at)| 255.0 * seam(image, &whole, axis, &at));
            println!("  {what}: steps at borders of rows {:.3}, of columns {:.3} of 255", seams[0], seams[1]);
            assert!(seams.iter().all(|&step| step < 0.6), "{}: {what}: seams of {seams:?} of 255", path.display());
        }
    }
}
