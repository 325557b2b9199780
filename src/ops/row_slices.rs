//! How kernels that keep rows in registers (`layer_norm_wide`, `softmax_wide`) part a row: a slice of `LANES` invocations, each with
//! `PIECES` groups of four values. A function of the row's length alone, so that a row's bits do not depend on the batch.

use crate::plan::card::grid_1d;

/// The longest row: eight groups of four for each invocation of a workgroup.
const MOST: u32 = 256 * 8 * 4;

/// Invocations of a workgroup where a row has fewer.
const WORKGROUP: u32 = 64;

/// Whether a row of `channels` values fits.
pub(crate) fn accepts(channels: u32) -> bool {
    channels.is_multiple_of(4) && channels <= MOST
}

/// The narrowest slice, of at least `least` invocations, of which each holds at most six groups: few steps of the tree, and loads enough under way.
fn slice(channels: u32, least: u32) -> (u32, u32) {
    let groups = channels / 4;
    let mut lanes = least;
    while lanes < 256 && groups.div_ceil(lanes) > 6 {
        lanes *= 2;
    }
    (lanes, groups.div_ceil(lanes))
}

/// Several rows per workgroup where they are short.
pub(crate) fn constants(channels: u32) -> Vec<(&'static str, f64)> {
    let (lanes, pieces) = slice(channels, 8);
    vec![("WG", f64::from(lanes.max(WORKGROUP))), ("LANES", f64::from(lanes)), ("PIECES", f64::from(pieces))]
}

pub(crate) fn grid(rows: u32, channels: u32) -> [u32; 3] {
    let (lanes, _) = slice(channels, 8);
    grid_1d(rows as usize, lanes.max(WORKGROUP) / lanes)
}

/// One row per workgroup: which invocations a subgroup has is not promised, so it may not be parted.
pub(crate) fn constants_alone(channels: u32) -> Vec<(&'static str, f64)> {
    let (lanes, pieces) = slice(channels, 32);
    vec![("WG", f64::from(lanes)), ("LANES", f64::from(lanes)), ("PIECES", f64::from(pieces))]
}
