//! The user's cache folder.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// $NAEVUS_CACHE where it is set (empty: keep nothing), else `naevus` in the folder that the system has for caches.
pub(super) fn folder() -> Option<PathBuf> {
    chosen(std::env::consts::OS, |name| std::env::var_os(name), std::env::home_dir())
}

fn chosen(system: &str, variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    if let Some(own) = variable("NAEVUS_CACHE") {
        return (!own.is_empty()).then(|| own.into());
    }
    // As the XDG specification says, a path that is not absolute does not count.
    let absolute = |path: &PathBuf| path.is_absolute();
    let home = |below: &str| home.as_deref().filter(|home| !home.as_os_str().is_empty()).map(|home: &Path| home.join(below));
    let caches = match system {
        "windows" => variable("LOCALAPPDATA").map(PathBuf::from).filter(|path| !path.as_os_str().is_empty()),
        "macos" => home("Library/Caches"),
        _ => variable("XDG_CACHE_HOME").map(PathBuf::from).filter(absolute).or_else(|| home(".cache")),
    };
    caches.map(|folder| folder.join("naevus"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_systems_own() {
        let with = |system: &str, set: &[(&str, &str)]| {
            let variable = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
            chosen(system, variable, Some("/home/u".into())).map(|path| path.display().to_string().replace('\\', "/"))
        };
        let path = |text: &str| Some(text.to_string());
        assert_eq!(with("linux", &[]), path("/home/u/.cache/naevus"));
        assert_eq!(with("linux", &[("XDG_CACHE_HOME", "relative")]), path("/home/u/.cache/naevus"));
        assert_eq!(with("macos", &[("XDG_CACHE_HOME", "/x")]), path("/home/u/Library/Caches/naevus"));
        assert_eq!(with("windows", &[("LOCALAPPDATA", "/local")]), path("/local/naevus"));
        assert_eq!(with("windows", &[]), None);
        assert_eq!(with("linux", &[("NAEVUS_CACHE", "/c"), ("XDG_CACHE_HOME", "/x")]), path("/c"));
        assert_eq!(with("linux", &[("NAEVUS_CACHE", "")]), None);
        if cfg!(unix) {
            assert_eq!(with("linux", &[("XDG_CACHE_HOME", "/x")]), path("/x/naevus"));
        }
    }
}
