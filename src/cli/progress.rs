//! Progress bars on stderr, and Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use super::Common;
use crate::base::{Error, Kind, Result};

/// A bar of `total` `unit`s, hidden by `--quiet` and where stderr is not a terminal.
pub(crate) fn bar(common: &Common, total: u64, unit: &str) -> ProgressBar {
    if common.quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  {elapsed} elapsed, {eta} left") {
        bar.set_style(style);
    }
    bar.set_message(unit.to_string());
    bar
}

/// A flag that Ctrl-C or a termination signal sets. A second one ends the program at once.
pub(crate) fn interruption() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    let set = move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("stopping after the batch in flight; once more stops at once");
    };
    ctrlc::set_handler(set).map_err(|e| Error::new(Kind::Io, "Ctrl-C", e.to_string()))?;
    Ok(flag)
}
