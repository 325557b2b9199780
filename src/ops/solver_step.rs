//! One step of a diffusion solver that is linear in what it reads, with classifier-free guidance and a known region: DDPM,
//! DPM-Solver++, UniPC, Euler, LCM and PNDM differ in their coefficients alone, which the host makes
//! (`diffusion::linear`). Guidance after Ho and Salimans, "Classifier-Free Diffusion Guidance" (2022), equation 6; the known region
//! after Lugmayr et al., "RePaint" (2022), equation 8.
//!
//! The state is S slots of `[N, H, W, C]`: slot 0 is the latents x, the others are what the solver remembers of earlier steps.
//! With out = uncond + guidance_scale (cond - uncond):
//!
//! converted = from_latents x + from_output out, held to +-clip;
//! y\[s\] = sum_j a\[s\]\[j\] state\[j\] + a\[s\]\[S\] converted + a\[s\]\[S + 1\] variance_noise;
//! y\[0\] = hole y\[0\] + (1 - hole) (known_z0 z0 + known_noise noise).   state, y: `[S N, H, W, C]`.
//!
//! Every number that changes from step to step stands in one row of a table: [`Head`], then the S by S + 2 matrix a.

use rayon::prelude::*;

use crate::base::{DType, Result, Tolerance};
use crate::ops::ddim_step::{KnownRegion, guided};
use crate::ops::{ELEM, LINEAR_INDEX};
use crate::params;
use crate::plan::{Case, CaseInput, Cost, Fill, Layout, Op, StepView, Tape, Tensor, TwinCall, Variant};

params! {
    pub struct Params {
        /// Elements of one slot.
        pub len: u32,
        /// Elements of one sample.
        pub item: u32,
        pub channels: u32,
        /// Rows of the coefficients: 1, or one for each sample.
        pub rows: u32,
        pub slots: u32,
        pub guided: u32,
        pub clip: u32,
        pub variance: u32,
        pub reimpose: u32,
        pub guidance_scale: f32,
        pub clip_range: f32,
    }
}

params! {
    /// The first columns of a row of the coefficient table.
    pub struct Head {
        /// The model's output is converted to from_latents x + from_output out.
        pub from_latents: f32,
        pub from_output: f32,
        /// The known region at the noise that the step arrives at is known_z0 z0 + known_noise noise; 1 and 0 after the last step.
        pub known_z0: f32,
        pub known_noise: f32,
    }
}

/// What stays the same in all steps of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SolverStep {
    /// Tensors in the state, the latents among them; at least 1.
    pub slots: usize,
    /// Guidance scale; the model's output then holds `[2 N, H, W, C]`, the unconditional half first.
    pub guidance_scale: Option<f32>,
    /// Bound of the converted output's size.
    pub clip: Option<f32>,
}

impl SolverStep {
    /// Columns of a row.
    pub fn columns(&self) -> usize {
        columns(self.slots)
    }
}

fn columns(slots: usize) -> usize {
    Head::SIZE / 4 + slots * (slots + 2)
}

const SOURCE: &str = include_str!("../../shaders/solver_step.wgsl");

pub static OP: Op = Op {
    name: "solver_step",
    params: Params::FIELDS,
    params_size: Params::SIZE,
    twin,
    cost,
    cases,
    bench,
    tolerance: Tolerance { relative: 1e-5, reason: "guidance by 7.5 enlarges about ten roundings; the sum of up to eight products may cancel" },
    f16: false,
    statistics: &[],
    variants: &[Variant::per_element(&[ELEM, LINEAR_INDEX, SOURCE])],
};

impl Tape {
    /// The state after a step, `[S N, H, W, C]`, from the model's output at the latents of `state` `[S N, H, W, C]`.
    /// `row`: `[1, K]` for all samples or `[N, K]`, K = [`SolverStep::columns`]. `variance_noise` `[N, H, W, C]`: without it that
    /// column is left out. Without `known` nothing is imposed again.
    pub fn solver_step(
        &mut self,
        model_output: Tensor,
        state: Tensor,
        row: Tensor,
        known: Option<&KnownRegion>,
        variance_noise: Option<Tensor>,
        step: &SolverStep,
    ) -> Result<Tensor> {
        let [n, h, w, c] = self.solver_shapes(model_output, state, row, step)?;
        let noises = known.map_or(vec![], |k| vec![("z0", k.z0), ("noise", k.noise)]).into_iter().chain(variance_noise.map(|v| ("variance_noise", v)));
        for (name, tensor) in noises {
            if self.shape(tensor).dims() != [n, h, w, c] {
                return Err(self.mismatch(format!("solver_step: {name} is {}, expected {:?}", self.shape(tensor), [n, h, w, c])));
            }
        }
        if let Some(KnownRegion { hole, .. }) = known
            && self.shape(*hole).dims() != [n, h, w, 1]
        {
            return Err(self.mismatch(format!("solver_step: hole is {}, expected {:?}", self.shape(*hole), [n, h, w, 1])));
        }
        let params = Params {
            len: (n * h * w * c) as u32,
            item: (h * w * c) as u32,
            channels: c as u32,
            rows: self.shape(row)[0] as u32,
            slots: step.slots as u32,
            guided: u32::from(step.guidance_scale.is_some()),
            clip: u32::from(step.clip.is_some()),
            variance: u32::from(variance_noise.is_some()),
            reimpose: u32::from(known.is_some()),
            guidance_scale: step.guidance_scale.unwrap_or(1.0),
            clip_range: step.clip.unwrap_or(0.0),
        };
        // The state stands in for tensors that the flags leave unread: a binding must hold something.
        let [hole, z0, noise] = known.map_or([state; 3], |k| [k.hole, k.z0, k.noise]);
        let inputs = [model_output, state, hole, z0, noise, variance_noise.unwrap_or(state), row];
        Ok(self.push(&OP, &params, &inputs, &[step.slots * n, h, w, c], DType::F32))
    }

    /// Checks what every step reads; the shape of the latents.
    fn solver_shapes(&self, model_output: Tensor, state: Tensor, row: Tensor, step: &SolverStep) -> Result<[usize; 4]> {
        let [all, h, w, c] = self.nhwc(state)?;
        if step.slots == 0 || !all.is_multiple_of(step.slots) || self.shape(state).numel() == 0 {
            return Err(self.mismatch(format!("solver_step: the state is {}, expected {} slots that are not empty", self.shape(state), step.slots)));
        }
        let n = all / step.slots;
        let outputs = [n * if step.guidance_scale.is_some() { 2 } else { 1 }, h, w, c];
        if self.shape(model_output).dims() != outputs {
            return Err(self.mismatch(format!("solver_step: the model's output is {}, expected {outputs:?}", self.shape(model_output))));
        }
        let rows = self.shape(row).dims();
        if rows != [1, step.columns()] && rows != [n, step.columns()] {
            return Err(self.mismatch(format!("solver_step: coefficients are {rows:?}, expected [1 or {n}, {}]", step.columns())));
        }
        Ok([n, h, w, c])
    }
}

fn twin(call: &mut TwinCall) {
    let p: Params = call.params();
    let (len, item, channels, slots) = (p.len as usize, p.item as usize, p.channels as usize, p.slots as usize);
    let [model_output, state, hole, z0, noise, variance_noise, rows] = *call.inputs else { return };
    call.output.par_chunks_mut(channels).enumerate().for_each(|(at, y)| {
        let (slot, pixel) = (at * channels / len, at % (len / channels));
        let row = &rows[if p.rows > 1 { pixel * channels / item } else { 0 } * columns(slots)..][..columns(slots)];
        let (head, matrix) = row.split_at(Head::SIZE / 4);
        let head: Head = bytemuck::cast_slice(head)[0];
        let a = &matrix[slot * (slots + 2)..][..slots + 2];
        for (c, y) in y.iter_mut().enumerate() {
            let i = pixel * channels + c;
            let mut converted = head.from_latents * state[i] + head.from_output * guided(model_output, i, len, p.guided != 0, p.guidance_scale);
            if p.clip != 0 {
                converted = converted.max(-p.clip_range).min(p.clip_range);
            }
            *y = a[slots] * converted;
            for j in 0..slots {
                *y += a[j] * state[j * len + i];
            }
            if p.variance != 0 {
                *y += a[slots + 1] * variance_noise[i];
            }
            if p.reimpose != 0 && slot == 0 {
                let known = head.known_z0 * z0[i] + head.known_noise * noise[i];
                *y = hole[pixel] * *y + (1.0 - hole[pixel]) * known;
            }
        }
    });
}

fn cost(s: &StepView) -> Cost {
    let p: Params = s.params();
    let per_value = 4 + 2 * p.slots + 3 * p.guided + 2 * p.clip + 2 * p.variance;
    let reimposed = 7 * u64::from(p.reimpose) * u64::from(p.len);
    Cost { flops: u64::from(per_value) * s.output.numel() as u64 + reimposed, bytes: s.bytes() }
}

/// Inputs in the order of the bindings, whether or not the step reads them. `rows` is 1 or N.
fn case(name: &'static str, shape: [usize; 4], rows: usize, known: bool, variance: bool, step: SolverStep) -> Case {
    let [n, c, h, w] = shape;
    let outputs = n * if step.guidance_scale.is_some() { 2 } else { 1 };
    let inputs = vec![
        CaseInput::image("model_output", &[outputs, c, h, w]),
        CaseInput::image("state", &[step.slots * n, c, h, w]),
        CaseInput::new("hole", &[n, 1, h, w], Layout::Image, Fill::Binary),
        CaseInput::image("z0", &shape),
        CaseInput::image("noise", &shape),
        CaseInput::image("variance_noise", &shape),
        CaseInput::new("row", &[rows, step.columns()], Layout::Plain, Fill::Uniform { low: -1.0, high: 1.0 }),
    ];
    Case::new(name, inputs, move |t, i| {
        let region = KnownRegion { hole: i[2], z0: i[3], noise: i[4] };
        t.solver_step(i[0], i[1], i[6], known.then_some(&region), variance.then_some(i[5]), &step)
    })
}

fn slots(slots: usize) -> SolverStep {
    SolverStep { slots, guidance_scale: None, clip: None }
}

fn cases() -> Vec<Case> {
    let small = [2, 3, 5, 7];
    let guided = SolverStep { guidance_scale: Some(7.5), ..slots(4) };
    vec![
        case("no_memory", small, 1, false, false, slots(1)),
        case("two_slots", small, 1, false, false, slots(2)),
        case("six_slots", [2, 3, 3, 5], 2, false, false, slots(6)),
        case("guided", small, 1, false, false, guided),
        case("clip", small, 1, false, false, SolverStep { clip: Some(0.25), ..slots(1) }),
        case("variance", small, 1, false, true, slots(1)),
        case("reimpose", small, 1, true, false, slots(2)),
        case("row_of_each", [3, 4, 3, 3], 3, true, true, slots(3)),
        case("everything", [2, 4, 5, 3], 2, true, true, SolverStep { clip: Some(1.0), ..guided }),
        case("large", [3, 4, 215, 217], 1, true, true, SolverStep { clip: Some(1.0), ..guided }).without_golden(),
    ]
}

fn bench() -> Vec<Case> {
    let guided = |n| SolverStep { guidance_scale: Some(7.5), ..slots(n) };
    vec![case("dpm_ham_8x32x16x16", [8, 32, 16, 16], 1, true, false, guided(2)), case("unipc_sd_2x4x64x64", [2, 4, 64, 64], 1, true, false, guided(4))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::case::run_tape;

    #[test]
    fn guards_name_what_was_found() {
        let mut t = Tape::new();
        let step = slots(2);
        let x = t.input("x", &[2, 4, 5, 3], DType::F32);
        let state = t.input("state", &[4, 4, 5, 3], DType::F32);
        let hole = t.input("hole", &[2, 4, 5, 1], DType::F32);
        let row = t.input("row", &[1, step.columns()], DType::F32);
        let rows = t.input("rows", &[3, step.columns()], DType::F32);
        assert!(t.solver_step(x, state, row, Some(&KnownRegion { hole, z0: x, noise: x }), Some(x), &step).is_ok());
        let mut fact = |out, state, row, known: Option<&KnownRegion>, variance, step: &SolverStep| {
            t.solver_step(out, state, row, known, variance, step).unwrap_err().fact().to_string()
        };
        assert_eq!(fact(state, state, row, None, None, &step), "solver_step: the model's output is [4, 4, 5, 3], expected [2, 4, 5, 3]");
        assert_eq!(fact(x, state, rows, None, None, &step), "solver_step: coefficients are [3, 12], expected [1 or 2, 12]");
        assert_eq!(fact(x, state, row, None, None, &slots(3)), "solver_step: the state is [4, 4, 5, 3], expected 3 slots that are not empty");
        assert!(fact(x, state, row, None, None, &slots(0)).contains("expected 0 slots"));
        assert!(fact(x, state, row, Some(&KnownRegion { hole: x, z0: x, noise: x }), None, &step).starts_with("solver_step: hole is [2, 4, 5, 3]"));
        assert!(fact(x, state, row, Some(&KnownRegion { hole, z0: state, noise: x }), None, &step).contains("z0"));
        assert!(fact(x, state, row, None, Some(state), &step).contains("variance_noise"));
    }

    #[test]
    fn the_shaders_columns_are_the_head() {
        for field in Head::FIELDS {
            let line = format!("const {}: u32 = {}u;", field.name.to_uppercase(), field.offset / 4);
            assert!(SOURCE.contains(&line), "{line}");
        }
        assert!(SOURCE.contains(&format!("const HEAD: u32 = {}u;", Head::SIZE / 4)));
    }

    /// Two slots: the second keeps the converted output of the step before the first takes it.
    #[test]
    fn a_slot_remembers_an_output() {
        let mut t = Tape::new();
        let step = slots(2);
        let out = t.input("out", &[1, 1, 2, 1], DType::F32);
        let state = t.input("state", &[2, 1, 2, 1], DType::F32);
        let row = t.input("row", &[1, step.columns()], DType::F32);
        let y = t.solver_step(out, state, row, None, None, &step).unwrap();
        // converted = x - 2 out; x' = x + 3 memory; memory' = converted.
        let row = [1.0, -2.0, 1.0, 0.0, 1.0, 3.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        let y = run_tape(&t, &[&[0.5, 1.0], &[4.0, 5.0, 10.0, 20.0], &row], y).unwrap();
        assert_eq!(y, [34.0, 65.0, 3.0, 3.0]);
    }
}
