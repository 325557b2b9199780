//! The files of `weights/` inside the program, and the folder that the demo unpacks them into. They are unpacked rather than read in
//! place: every other verb takes them from there too, and a loader knows files only.

use std::path::{Path, PathBuf};

use crate::base::{Error, Kind, Result};
use crate::driver::files;

/// First line of the README.md in a folder that the demo has made.
const MARK: &str = "# What `naevus demo` made";

#[cfg(feature = "demo")]
macro_rules! embedded {
    ($($name:literal)*) => { &[$(($name, include_bytes!(concat!("../../weights/", $name)))),*] };
}

/// Path below `weights/`, and bytes, sorted by path. Empty where the program was built without the feature `demo`.
#[cfg(not(feature = "demo"))]
pub const FILES: &[(&str, &[u8])] = &[];
/// Path below `weights/`, and bytes, sorted by path. Empty where the program was built without the feature `demo`.
#[cfg(feature = "demo")]
#[rustfmt::skip]
pub const FILES: &[(&str, &[u8])] = embedded![
    "README.md" "SHA256SUMS"
    "classifier/README.md" "classifier/config.json" "classifier/model.safetensors"
    "demo/README.md"
    "demo/images/demo_00.png" "demo/images/demo_01.png" "demo/images/demo_02.png" "demo/images/demo_03.png" "demo/images/demo_04.png"
    "demo/images/demo_05.png" "demo/images/demo_06.png" "demo/images/demo_07.png" "demo/images/demo_08.png" "demo/images/demo_09.png"
    "demo/images/demo_10.png" "demo/images/demo_11.png" "demo/images/demo_12.png" "demo/images/demo_13.png" "demo/images/demo_14.png"
    "demo/images/demo_15.png" "demo/images/demo_16.png" "demo/images/demo_17.png" "demo/images/demo_18.png" "demo/images/demo_19.png"
    "demo/images/demo_20.png" "demo/images/demo_21.png" "demo/images/demo_22.png" "demo/images/demo_23.png"
    "demo/labels.csv"
    "demo/masks/demo_00_mask.png" "demo/masks/demo_01_mask.png" "demo/masks/demo_02_mask.png" "demo/masks/demo_03_mask.png"
    "demo/masks/demo_04_mask.png" "demo/masks/demo_05_mask.png" "demo/masks/demo_06_mask.png" "demo/masks/demo_07_mask.png"
    "demo/masks/demo_08_mask.png" "demo/masks/demo_09_mask.png" "demo/masks/demo_10_mask.png" "demo/masks/demo_11_mask.png"
    "demo/masks/demo_12_mask.png" "demo/masks/demo_13_mask.png" "demo/masks/demo_14_mask.png" "demo/masks/demo_15_mask.png"
    "demo/masks/demo_16_mask.png" "demo/masks/demo_17_mask.png" "demo/masks/demo_18_mask.png" "demo/masks/demo_19_mask.png"
    "demo/masks/demo_20_mask.png" "demo/masks/demo_21_mask.png" "demo/masks/demo_22_mask.png" "demo/masks/demo_23_mask.png"
    "inpaint/README.md" "inpaint/model_index.json" "inpaint/scheduler/scheduler_config.json"
    "inpaint/unet/config.json" "inpaint/unet/diffusion_pytorch_model.safetensors"
    "inpaint/vae/config.json" "inpaint/vae/diffusion_pytorch_model.safetensors"
    "judge/README.md" "judge/config.json" "judge/model.safetensors"
    "reference/README.md" "reference/features.safetensors"
    "segmenter/README.md" "segmenter/config.json" "segmenter/model.safetensors"
];

/// Fails where the program was built without its models.
pub fn check_inside() -> Result<()> {
    if FILES.is_empty() {
        let fact = "this program was built without its models (the cargo feature `demo`), expected --weights DIR";
        return Err(Error::new(Kind::Usage, "demo", fact));
    }
    Ok(())
}

/// A folder laid out like `weights/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoModels {
    pub root: PathBuf,
}

impl DemoModels {
    /// The files inside the program, written to `out/models`. A file that is there already is left; one with other bytes is an error.
    pub fn unpack(out: &Path) -> Result<DemoModels> {
        let root = out.join("models");
        for (name, bytes) in FILES {
            let path = root.join(name);
            path.parent().map_or(Ok(()), files::make_folder)?;
            match std::fs::read(&path) {
                Ok(found) if found == *bytes => {}
                Ok(_) => return Err(Error::new(Kind::Data, path.display().to_string(), "is another file than this program's; take another --out")),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => files::write_whole(&path, bytes)?,
                Err(e) => return Err(Error::io(&path, &e)),
            }
        }
        Ok(DemoModels { root })
    }

    /// Sources of the samples: a data set with masks.
    pub fn sources(&self) -> PathBuf {
        self.root.join("demo")
    }

    pub fn inpaint(&self) -> PathBuf {
        self.root.join("inpaint")
    }

    /// Scores the samples.
    pub fn classifier(&self) -> PathBuf {
        self.root.join("classifier")
    }

    /// Says which class it sees, and has no part in the selection.
    pub fn judge(&self) -> PathBuf {
        self.root.join("judge")
    }

    /// The classifier's features of real images.
    pub fn reference(&self) -> PathBuf {
        self.root.join("reference").join("features.safetensors")
    }
}

/// Makes the demo's folder, or takes one that a demo has made. Fails where it holds anything else, and changes nothing then.
pub fn claim(out: &Path, text: &str) -> Result<()> {
    let readme = out.join("README.md");
    let is_ours = || std::fs::read_to_string(&readme).is_ok_and(|text| text.starts_with(MARK));
    match std::fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
        Ok(true) if !is_ours() => {
            let fact = "holds other files, expected an empty or new folder, or one that `naevus demo` made; take another --out";
            return Err(Error::new(Kind::Usage, format!("--out {}", out.display()), fact));
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(out, &e)),
        _ => files::make_folder(out)?,
    }
    files::write_whole(&readme, format!("{MARK}\n{text}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_others_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/out");
        claim(&out, "one").unwrap();
        claim(&out, "two").unwrap();
        assert_eq!(std::fs::read_to_string(out.join("README.md")).unwrap(), format!("{MARK}\ntwo"));
        std::fs::write(out.join("README.md"), "# Thesis").unwrap();
        let error = claim(&out, "three").unwrap_err();
        assert!(error.kind() == Kind::Usage && error.fact().starts_with("holds other files"), "{error}");
        assert_eq!(std::fs::read_to_string(out.join("README.md")).unwrap(), "# Thesis");
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert!(claim(&dir.path().join("file"), "four").is_err());
    }

    #[cfg(feature = "demo")]
    #[test]
    fn files_are_unpacked_once_and_others_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let models = DemoModels::unpack(dir.path()).unwrap();
        assert!(models.reference().is_file() && models.sources().join("labels.csv").is_file());
        assert_eq!(DemoModels::unpack(dir.path()).unwrap(), models);
        std::fs::write(models.judge().join("config.json"), "{}").unwrap();
        let error = DemoModels::unpack(dir.path()).unwrap_err();
        assert!(error.place().ends_with("config.json") && error.fact().contains("another file"), "{error}");
    }
}
