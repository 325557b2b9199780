//! Compiled pipelines are kept per adapter and driver, and what is not ours is never given to the driver.

use std::path::Path;
use std::sync::Mutex;

use naevus::base::{Array, DType};
use naevus::exec::gpu::adapters;
use naevus::exec::kept::{Identity, Keeper};
use naevus::exec::pipelines::PipelineFile;
use naevus::exec::{Device, Settings};
use naevus::ops::conv2d::Conv2d;
use naevus::plan::{Options, Tape};

static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn say(line: &str) {
    SAID.lock().unwrap().push(line.to_string());
}

fn said() -> Vec<String> {
    std::mem::take(&mut SAID.lock().unwrap())
}

/// A convolution on the first adapter, which is then closed.
fn convolved(cache: Option<&Path>) -> Array {
    let device = Device::open_with("0", &Settings { cache: cache.map(Path::to_path_buf), say, ..Settings::default() }).unwrap();
    let mut tape = Tape::new();
    let [x, w] = [("x", [1, 8, 8, 4]), ("w", [3, 3, 4, 4])].map(|(name, shape)| tape.input(name, &shape, DType::F32));
    let y = tape.conv2d(x, w, None, &Conv2d::padded(1)).unwrap();
    tape.output("y", y);
    let mut session = device.prepare(tape, &Options::default()).unwrap();
    for (name, len) in [("x", 256), ("w", 144)] {
        session.write(name, &(0..len).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>()).unwrap();
    }
    session.run().unwrap();
    session.read("y").unwrap()
}

#[test]
fn pipelines_are_kept_and_a_file_that_is_not_ours_is_made_anew() {
    let Some(adapter) = adapters().into_iter().next() else {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped: no adapter");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = PipelineFile::beside(&Keeper::new(dir.path(), Identity::of(&adapter)));
    let expected = convolved(None);
    assert!(said().is_empty() && std::fs::read_dir(dir.path()).unwrap().next().is_none());
    if adapter.backend != "Vulkan" {
        println!("skipped: {} has no pipeline cache", adapter.backend);
        return;
    }
    assert_eq!(convolved(Some(dir.path())), expected);
    let (Some(kept), None) = file.read() else { panic!("nothing was kept: {:?}", said()) };
    // wgpu's own header comes first.
    assert!(kept.starts_with(b"WGPUPLCH") && said().is_empty());
    assert_eq!(convolved(Some(dir.path())), expected);
    assert_eq!((file.read(), said()), ((Some(kept.clone()), None), Vec::new()));

    let whole = std::fs::read(&file.path).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&file.path, damaged).unwrap();
    assert_eq!(convolved(Some(dir.path())), expected);
    let notes = said();
    assert!(notes.len() == 1 && notes[0].contains("damaged"), "{notes:?}");
    assert_eq!((file.read(), said()), ((Some(kept), None), Vec::new()));

    // Ours by its sum and its name, but not by wgpu's header: wgpu leaves it aside.
    file.write(b"WGPUPLCH and nothing else").unwrap();
    assert_eq!(convolved(Some(dir.path())), expected);
    assert!(file.read().0.is_some_and(|data| data.len() > 40) && said().is_empty());

    // A folder that can't be made: said, and no reason to fail.
    let nowhere = file.path.join("folder");
    assert_eq!(convolved(Some(&nowhere)), expected);
    let notes = said();
    assert!(notes.iter().any(|note| note.contains("compiled pipelines are not kept")), "{notes:?}");
}
