//! How numbers are said, and where reports go.

use crate::base::{Error, Kind, Result};

/// `1.2 GiB`, `37 MiB`, `512 B`.
pub(crate) fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.0} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ if n >= 1 << 50 => "unlimited".to_string(),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

/// `2.31 ms`, `12.4 us`, `1.20 s`.
pub(crate) fn milliseconds(ms: f64) -> String {
    if ms < 0.1 {
        format!("{:.1} us", ms * 1e3)
    } else if ms < 1000.0 {
        format!("{ms:.2} ms")
    } else {
        format!("{:.2} s", ms / 1e3)
    }
}

/// `13.1 TFLOP/s`, `96 GFLOP/s`.
pub(crate) fn rate(flop_per_s: f64) -> String {
    if flop_per_s >= 1e12 { format!("{:.1} TFLOP/s", flop_per_s / 1e12) } else { format!("{:.2} GFLOP/s", flop_per_s / 1e9) }
}

/// A line of JSON on stdout, or the error why not.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<()> {
    print_line(&serde_json::to_string_pretty(value).map_err(|e| Error::new(Kind::Io, "stdout", e.to_string()))?)
}

/// A line on stdout; a closed pipe is an error, not a panic.
pub(crate) fn print_line(line: &str) -> Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stdout().lock(), "{line}").map_err(|e| Error::new(Kind::Io, "stdout", e.to_string()))
}
