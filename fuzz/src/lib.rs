//! What the fuzz targets share: bytes become a file, the file is loaded as a user's would be, and what it is loaded as
//! must record and plan a forward pass or refuse it in one line.

use std::path::Path;

use naevus::base::{DType, Result, Shape};
use naevus::models::{Inputs, recognise};
use naevus::plan::{Options, Plan, Tape};

/// Largest tensor of a recorded pass that is worth planning here: larger ones are legal, and slow.
const LARGEST: usize = 1 << 24;

/// A folder in memory that lives as long as the process.
pub fn folder() -> &'static Path {
    static FOLDER: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    let root = Path::new("/dev/shm");
    FOLDER.get_or_init(|| if root.is_dir() { tempfile::tempdir_in(root) } else { tempfile::tempdir() }.expect("a temporary folder")).path()
}

/// Writes `bytes` as `name` and loads them; the error, if there is one, must be one line with a fact.
pub fn load_file(name: &str, bytes: &[u8]) {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("a file in a temporary folder");
    hold(load(&path));
}

/// Fails where an error is not one line.
pub fn hold<T>(result: Result<T>) {
    if let Err(error) = result {
        let text = error.to_string();
        assert!(!text.contains('\n') && !error.fact().is_empty() && text.len() < 16_384, "{text}");
    }
}

/// Recognises, loads, records one forward of each component and freezes its plan.
pub fn load(path: &Path) -> Result<()> {
    let model = recognise(path)?.load()?;
    for component in model.components() {
        let mut t = Tape::new();
        let ports = model.ports(component, 1);
        if ports.iter().any(|port| Shape::new(&port.shape).numel() > LARGEST) {
            continue;
        }
        let inputs: Vec<_> = ports.iter().map(|port| (port.name.clone(), t.input(&port.name, &port.shape, DType::clone(&port.dtype)))).collect();
        let outputs = model.record(&mut t, component, &Inputs::new(inputs))?;
        outputs.iter().for_each(|output| t.output(&output.name, output.tensor));
        Plan::freeze(t, &Options::default())?;
    }
    Ok(())
}
