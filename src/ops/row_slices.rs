//! Kernels of ops over the last axis (layer norm, softmax), and how those that keep rows in registers part a row: a slice of `LANES` invocations, each
//! with `PIECES` groups of four values. A function of the row's length alone, so that a row's bits do not depend on the batch.

use crate::ops::{ELEM, TREE_F32, TREE_SLICES, TREE_SUBGROUP};
use crate::plan::card::grid_1d;
use crate::plan::{Machine, StepView, Variant};

/// The longest row: eight groups of four for each invocation of a workgroup.
const MOST: u32 = 256 * 8 * 4;

/// Invocations of a workgroup where a row has fewer.
const WORKGROUP: u32 = 64;

/// The kernels of an op over the last axis of its result, a row at a time, from `source`, which sums by a tree, and `wide`, which keeps the row in
/// registers: each with its sums by workgroup memory and by subgroups.
pub(crate) const fn variants(sources: &'static [[&'static str; 3]; 4]) -> [Variant; 4] {
    let direct = Variant {
        name: "direct",
        family: "direct",
        source: &sources[0],
        workgroup: 64,
        meant_for: Machine::Any,
        constants: |_| vec![],
        accepts: |_| true,
        grid: |s| grid_1d(rows(s) as usize, 1),
    };
    // The heuristic's choice on hardware unmeasured: it reads x once where `direct` reads it three times, in wider loads.
    let wide = Variant {
        name: "wide",
        family: "wide",
        source: &sources[3],
        workgroup: 256,
        meant_for: Machine::Hardware,
        constants: |s| constants(channels(s)),
        accepts: |s| accepts(channels(s)),
        grid: |s| grid(rows(s), channels(s)),
    };
    let subgroups = Variant { name: "subgroups", family: "subgroups", source: &sources[1], meant_for: Machine::Hardware, ..direct };
    let wide_subgroups = Variant {
        name: "wide_subgroups",
        family: "wide_subgroups",
        source: &sources[2],
        constants: |s| constants_alone(channels(s)),
        grid: direct.grid,
        ..wide
    };
    [direct, subgroups, wide_subgroups, wide]
}

/// The fragments of [`variants`] in their order.
pub(crate) const fn sources(source: &'static str, wide: &'static str) -> [[&'static str; 3]; 4] {
    [[ELEM, TREE_F32, source], [ELEM, TREE_SUBGROUP, source], [ELEM, TREE_SUBGROUP, wide], [ELEM, TREE_SLICES, wide]]
}

fn channels(s: &StepView) -> u32 {
    s.output.last() as u32
}

fn rows(s: &StepView) -> u32 {
    (s.output.numel() / s.output.last()) as u32
}

/// Whether a row of `channels` values fits.
fn accepts(channels: u32) -> bool {
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
fn constants(channels: u32) -> Vec<(&'static str, f64)> {
    let (lanes, pieces) = slice(channels, 8);
    vec![("WG", f64::from(lanes.max(WORKGROUP))), ("LANES", f64::from(lanes)), ("PIECES", f64::from(pieces))]
}

fn grid(rows: u32, channels: u32) -> [u32; 3] {
    let (lanes, _) = slice(channels, 8);
    grid_1d(rows as usize, lanes.max(WORKGROUP) / lanes)
}

/// One row per workgroup: which invocations a subgroup has is not promised, so it may not be parted.
fn constants_alone(channels: u32) -> Vec<(&'static str, f64)> {
    let (lanes, pieces) = slice(channels, 32);
    vec![("WG", f64::from(lanes)), ("LANES", f64::from(lanes)), ("PIECES", f64::from(pieces))]
}
