//! How many images `synthesize` makes at once, and why.

use super::speech;
use crate::base::{Error, Kind, Result};
use crate::driver::synthesize::Job;
use crate::exec::Device;
use crate::exec::gpu::AdapterKind;
use crate::exec::memory::{Budget, Draft};
use crate::plan::{Options, Session, Tape};

/// Images at once where nothing speaks for more. Guidance doubles it inside the model.
const USUAL: usize = 8;
/// The most of `auto`: a stop waits for the batch in flight.
const MOST: usize = 64;
/// Work of a step that keeps a large GPU busy for ten milliseconds, against which its launches are nothing.
const BUSY_FLOPS: u64 = 200_000_000_000;

/// `auto` is None.
pub(super) fn parse(text: &str) -> Result<Option<usize>> {
    match text.parse() {
        _ if text == "auto" => Ok(None),
        Ok(n) if (1..=1024).contains(&n) => Ok(Some(n)),
        _ => Err(Error::new(Kind::Usage, format!("--batch {text}"), "expected auto or 1 to 1024")),
    }
}

/// `500MB`, `6GiB`, `8G`, or bytes: K, M, G and T are powers of 1024, KB and its like of 1000.
pub(super) fn parse_bytes(text: &str) -> Result<u64> {
    let wrong = || Error::new(Kind::Usage, format!("--memory-limit {text}"), "expected bytes, or a number with K, M, G or T, such as 6GiB or 500MB");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_uppercase();
    let mut letters = unit.chars();
    let power = match letters.next() {
        None | Some('B') => 0,
        Some(letter) => 1 + "KMGT".find(letter).ok_or_else(wrong)?,
    };
    let base = match (power, letters.as_str()) {
        (0, "") | (1.., "" | "IB") => 1024f64,
        (1.., "B") => 1000f64,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * base.powi(power as i32);
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// A size of batches and the reason for it.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) images: usize,
    pub(super) why: String,
}

impl Chosen {
    pub(super) fn asked(images: usize) -> Chosen {
        Chosen { images, why: "as asked for".to_string() }
    }
}

impl std::fmt::Display for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} image{} at once ({})", self.images, if self.images == 1 { "" } else { "s" }, self.why)
    }
}

/// The size of batches whose plans fit: looks at plans, takes no memory.
pub(super) fn choose(device: &Device, job: &Job, limit: Option<u64>) -> Result<Chosen> {
    let samples = job.samples().max(1);
    let (wish, reason) = wish(device, job, samples)?;
    let mut images = wish;
    loop {
        match drafted(device, job, images, limit) {
            Ok(told) if images == wish => return Ok(Chosen { images, why: format!("{reason}; {told}") }),
            Ok(told) => return Ok(Chosen { images, why: format!("{wish} do not fit; {told}") }),
            Err(e) if e.kind() == Kind::Limit && images > 1 => images /= 2,
            // Where it is only an estimate that one does not fit, the device says what is true.
            Err(e) if e.kind() == Kind::Limit && limit.is_none() => return Ok(Chosen { images, why: format!("it is the least; {e}") }),
            Err(e) => return Err(e),
        }
    }
}

/// The images that would be good for the device if memory were endless.
fn wish(device: &Device, job: &Job, samples: usize) -> Result<(usize, String)> {
    let is_hardware = device.gpu().is_some_and(|gpu| gpu.summary().kind != AdapterKind::Software);
    if samples <= USUAL {
        return Ok((samples, format!("all {samples} samples")));
    }
    if !is_hardware {
        return Ok((USUAL, "on a CPU more are no faster".to_string()));
    }
    // Work is proportional to the images: one plan tells.
    let mut draft = |tape: Tape| Ok(Box::new(Draft(device.plan(tape, &Options::default())?)) as Box<dyn Session>);
    let [_, step, _] = job.inpainter(1, &mut draft)?.costs();
    let images = (BUSY_FLOPS.div_ceil(step.flops.max(1)) as usize).next_power_of_two().clamp(USUAL, MOST).min(samples);
    Ok((images, format!("a step of them is {:.0} GFLOP", (step.flops * images as u64) as f64 / 1e9)))
}

/// The memory of the plans of a batch in words, or `Kind::Limit` where they exceed the device or its memory.
fn drafted(device: &Device, job: &Job, images: usize, limit: Option<u64>) -> Result<String> {
    let mut budget = Budget::of(device, limit);
    let mut draft = |tape: Tape| {
        let plan = device.plan(tape, &Options::default())?;
        budget.as_mut().map_or(Ok(()), |budget| budget.take(&plan))?;
        Ok(Box::new(Draft(plan)) as Box<dyn Session>)
    };
    job.inpainter(images, &mut draft)?;
    Ok(match budget {
        None => "nobody tells how much memory is free".to_string(),
        Some(budget) => format!("their plans take {}, {} is {}", speech::bytes(budget.used()), budget.what, speech::bytes(budget.most())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in
            [("512", 512), ("2K", 2048), ("2KB", 2000), ("2 kib", 2048), ("1.5GiB", 3 << 29), ("8g", 8 << 30), ("500MB", 500_000_000), ("7B", 7)]
        {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GiB", "0", "-1", "1X", "1GiBB", "1e9", "99999999T", "1..2", "2iB"] {
            let error = parse_bytes(text).unwrap_err();
            assert!(error.kind() == Kind::Usage && error.place() == format!("--memory-limit {text}"), "{text}");
        }
    }

    #[test]
    fn batches_are_read() {
        assert_eq!((parse("auto").unwrap(), parse("7").unwrap()), (None, Some(7)));
        assert!(["0", "1025", "many", ""].iter().all(|text| parse(text).is_err()));
    }
}
