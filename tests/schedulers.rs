//! Walks of diffusers' schedulers, replayed: on the host in float64, and as a plan on every executor. The model is a formula of the
//! latents and the timestep, so that an error of one step is in all that follow.

use std::path::{Path, PathBuf};

use naevus::base::DType;
use naevus::diffusion::linear::Steps;
use naevus::diffusion::schedule::StepInputs;
use naevus::diffusion::{Class, Schedule, Scheduler, Walk};
use naevus::exec::Device;
use naevus::exec::gpu::{Gpu, adapters};
use naevus::ops::activation::Function;
use naevus::plan::{Options, Session, Tape};
use naevus::weights::Config;
use serde_json::Value;

/// The host's steps are those of diffusers but for the ten digits that are recorded. What is left comes from zero terminal SNR: torch's
/// f32 square root is not rounded to nearest on every CPU, and the rescaled table is small differences of square roots.
const HOST: f64 = 2e-6;
/// f32 steps with f32 coefficients: about one rounding of each of up to 51 steps, enlarged where x_0 is a difference of large numbers.
const DEVICE: f64 = 1e-5;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/schedulers")
}

/// The CPU executor, and the first adapter where there is one. NAEVUS_REQUIRE_GPU=1 makes its absence a failure.
fn devices() -> Vec<Device> {
    if adapters().is_empty() {
        assert!(std::env::var("NAEVUS_REQUIRE_GPU").is_err(), "no adapter, and NAEVUS_REQUIRE_GPU is set");
        println!("skipped on a device: no adapter");
        return vec![Device::Cpu];
    }
    vec![Device::Cpu, Device::Gpu(Gpu::open(0).expect("the first adapter opens"))]
}

fn json(file: &str) -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(folder().join(file)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The latents at the start, then the noise of each step.
fn noise() -> Vec<Vec<f64>> {
    json("noise.json").iter().map(numbers).collect()
}

/// What the model adds to 0.3 of its input.
fn bias(timestep: f64) -> [f64; 4] {
    [0.0, 1.0, 2.0, 3.0].map(|i| 0.5 * (i + timestep / 100.0).cos())
}

struct Case {
    name: String,
    scheduler: Scheduler,
    walk: Walk,
    recorded: Value,
}

fn cases(class: Class) -> Vec<Case> {
    let case = |recorded: Value| {
        let name = format!("{} in {} steps", recorded["config"], recorded["steps"]);
        let scheduler = Scheduler::from_config(&Config::parse(&recorded["config"].to_string(), &name).unwrap(), None).unwrap();
        assert_eq!(scheduler.class, class);
        Case { name, scheduler, walk: Walk { steps: recorded["steps"].as_u64().unwrap() as usize, eta: 0.0, strength: 1.0 }, recorded }
    };
    json(&format!("{}.json", class.name())).into_iter().map(case).collect()
}

impl Case {
    /// The difference from the recorded latents after step `k`, relative to the largest of them.
    fn error(&self, k: usize, got: impl Iterator<Item = f64>) -> f64 {
        let Some(want) = self.recorded["latents"].get(k.to_string()) else { return 0.0 };
        let want = numbers(want);
        let size = want.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        got.zip(&want).map(|(a, b)| (a - b).abs() / size).fold(0.0, f64::max)
    }

    /// The walk in float64.
    fn on_host(&self, noise: &[Vec<f64>]) -> f64 {
        let Steps { slots, start, steps } = Steps::new(&self.scheduler, &self.walk).unwrap();
        let times: Vec<f64> = numbers(&self.recorded["timesteps"]);
        let agree = times.len() == steps.len() && times.iter().zip(&steps).all(|(a, b)| (a - b.timestep).abs() <= 2e-4 * a.max(1.0));
        assert!(agree, "{}: timesteps {:?}, expected {times:?}", self.name, steps.iter().map(|s| s.timestep).collect::<Vec<_>>());
        assert_eq!(slots, self.scheduler.slots());
        let sigma = self.recorded["init_noise_sigma"].as_f64().unwrap();
        assert!(start[0] == 0.0 && (start[1] / sigma - 1.0).abs() < 1e-6, "{}: starts with {start:?}, expected {sigma}", self.name);
        let mut state = vec![vec![0.0; 4]; slots];
        state[0] = noise[0].iter().map(|v| v * start[1]).collect();
        let mut worst: f64 = 0.0;
        for (k, step) in steps.iter().enumerate() {
            let bias = bias(step.timestep);
            let output: Vec<f64> = (0..4).map(|i| 0.3 * step.input_scale * state[0][i] + bias[i]).collect();
            state = step.apply(self.scheduler.limit, &output, &state, &noise[1 + k.min(noise.len() - 2)]);
            worst = worst.max(self.error(k, state[0].iter().copied()));
        }
        worst
    }

    /// The plan of one step: the formula in the place of the model, then the scheduler's step, carried.
    fn tape(&self) -> Tape {
        let (mut t, n) = (Tape::new(), 1);
        let state = t.input("state", &[self.scheduler.slots(), 2, 2, 1], DType::F32);
        let row = t.input("row", &[1, self.scheduler.columns()], DType::F32);
        let noise = self.scheduler.is_stochastic(0.0).then(|| t.input("variance_noise", &[1, 2, 2, 1], DType::F32));
        let (scale, bias) = (t.input("input_scale", &[1, 1, 1, 1], DType::F32), t.input("bias", &[1, 2, 2, 1], DType::F32));
        let latents = t.slice(state, 0, 0, n).unwrap();
        let input = t.mul(latents, scale).unwrap();
        let part = t.activation(input, Function::Affine { scale: 0.3, shift: 0.0 }).unwrap();
        let output = t.add(part, bias).unwrap();
        let inputs = StepInputs { state, row, known: None, variance_noise: noise };
        let next = self.scheduler.record_step(&mut t, output, &inputs, None).unwrap();
        t.carry(next, state).unwrap();
        t.output("next", next);
        t
    }

    fn on(&self, session: &mut dyn Session, noise: &[Vec<f64>]) -> f64 {
        let schedule = Schedule::new(&self.scheduler, &self.walk).unwrap();
        let mut state: Vec<f32> = noise[0].iter().map(|&v| v as f32 * schedule.start.1).collect();
        state.resize(4 * self.scheduler.slots(), 0.0);
        session.write("state", &state).unwrap();
        let mut worst: f64 = 0.0;
        for (k, row) in schedule.rows.iter().enumerate() {
            session.write("row", row).unwrap();
            session.write("input_scale", &[schedule.input_scales[k]]).unwrap();
            session.write("bias", &bias(f64::from(schedule.timesteps[k])).map(|v| v as f32)).unwrap();
            if self.scheduler.is_stochastic(0.0) {
                session.write("variance_noise", &noise[1 + k].iter().map(|&v| v as f32).collect::<Vec<_>>()).unwrap();
            }
            session.run().unwrap();
            let next = session.read("next").unwrap();
            worst = worst.max(self.error(k, next.data[..4].iter().map(|&v| f64::from(v))));
        }
        worst
    }
}

fn follows_diffusers(class: Class) {
    let (cases, noise, devices) = (cases(class), noise(), devices());
    let mut worst = vec![(0.0, ""); 1 + devices.len()];
    let mut sessions: Vec<(String, Vec<Box<dyn Session>>)> = Vec::new();
    for case in &cases {
        let key = format!("{} {:?}", case.scheduler.slots(), case.scheduler.limit);
        if !sessions.iter().any(|(known, _)| *known == key) {
            let prepared = devices.iter().map(|device| device.prepare(case.tape(), &Options::default()).unwrap()).collect();
            sessions.push((key.clone(), prepared));
        }
        let on_devices = &mut sessions.iter_mut().find(|(known, _)| *known == key).unwrap().1;
        let errors = [case.on_host(&noise)].into_iter().chain(on_devices.iter_mut().map(|session| case.on(session.as_mut(), &noise)));
        for (worst, error) in worst.iter_mut().zip(errors) {
            if !(error <= worst.0) {
                *worst = (error, &case.name);
            }
        }
    }
    let places = ["float64".to_string()].into_iter().chain(devices.iter().map(Device::describe));
    for ((place, (error, name)), limit) in places.zip(&worst).zip([HOST, DEVICE, DEVICE]) {
        println!("{}: {} walks, {place}: worst {error:.1e}: {name}", class.name(), cases.len());
        assert!(*error <= limit, "{}: {place}: {error:e}, expected at most {limit:e}: {name}", class.name());
    }
    assert!(cases.len() > 30);
}

#[test]
fn ddpm() {
    follows_diffusers(Class::Ddpm);
}

#[test]
fn dpm_solver() {
    follows_diffusers(Class::DpmSolver);
}

#[test]
fn unipc() {
    follows_diffusers(Class::UniPc);
}

#[test]
fn euler() {
    follows_diffusers(Class::Euler);
}

#[test]
fn lcm() {
    follows_diffusers(Class::Lcm);
}

#[test]
fn pndm() {
    follows_diffusers(Class::Pndm);
}
