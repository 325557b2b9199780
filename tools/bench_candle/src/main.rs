//! Times a diffusers `UNet2DModel`'s forward with candle on the CPU in f32: the other side of `naevus bench unet --device cpu`.
//!
//!     cargo run --release --manifest-path tools/bench_candle/Cargo.toml -- ../shared/reference/inpaint-ham128/unet/diffusion_pytorch_model.safetensors 4
//!
//! Two levels, the second with attention, heads of 32, 32 groups: the reference UNet's topology. The last lines compare the result with one that
//! `naevus forward` wrote for the same inputs, if its folder is the third argument (`inputs.safetensors`, `expected.safetensors`).

use std::path::Path;
use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, Linear, Module, VarBuilder, conv2d, embedding, group_norm, linear};

const WIDTHS: [usize; 2] = [96, 192];
const CHANNELS: (usize, usize) = (65, 32);
const GROUPS: usize = 32;
const HEAD: usize = 32;
const CLASSES: usize = 8;
const SIDE: usize = 16;
const EPS: f64 = 1e-5;
const RUNS: usize = 20;

struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

fn padded() -> Conv2dConfig {
    Conv2dConfig { padding: 1, ..Default::default() }
}

impl Resnet {
    fn new(vb: VarBuilder, from: usize, to: usize) -> Result<Self> {
        Ok(Self {
            norm1: group_norm(GROUPS, from, EPS, vb.pp("norm1"))?,
            conv1: conv2d(from, to, 3, padded(), vb.pp("conv1"))?,
            time: linear(4 * WIDTHS[0], to, vb.pp("time_emb_proj"))?,
            norm2: group_norm(GROUPS, to, EPS, vb.pp("norm2"))?,
            conv2: conv2d(to, to, 3, padded(), vb.pp("conv2"))?,
            shortcut: (from != to).then(|| conv2d(from, to, 1, Default::default(), vb.pp("conv_shortcut"))).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&self.norm1.forward(x)?.silu()?)?;
        let h = h.broadcast_add(&self.time.forward(&time.silu()?)?.unsqueeze(2)?.unsqueeze(3)?)?;
        let h = self.conv2.forward(&self.norm2.forward(&h)?.silu()?)?;
        match &self.shortcut {
            Some(conv) => conv.forward(x)? + h,
            None => x + h,
        }
    }
}

struct Attention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl Attention {
    fn new(vb: VarBuilder, width: usize) -> Result<Self> {
        let part = |name: &str| linear(width, width, vb.pp(name));
        Ok(Self { norm: group_norm(GROUPS, width, EPS, vb.pp("group_norm"))?, q: part("to_q")?, k: part("to_k")?, v: part("to_v")?, out: part("to_out.0")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let tokens = self.norm.forward(x)?.reshape((n, c, h * w))?.transpose(1, 2)?.contiguous()?;
        let heads = |t: Tensor| t.reshape((n, h * w, c / HEAD, HEAD))?.transpose(1, 2)?.contiguous();
        let (q, k, v) = (heads(self.q.forward(&tokens)?)?, heads(self.k.forward(&tokens)?)?, heads(self.v.forward(&tokens)?)?);
        let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * (HEAD as f64).powf(-0.5))?;
        let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
        let tokens = self.out.forward(&mixed.transpose(1, 2)?.contiguous()?.reshape((n, h * w, c))?)?;
        tokens.transpose(1, 2)?.reshape((n, c, h, w))? + x
    }
}

struct Unet {
    time: (Linear, Linear),
    classes: candle_nn::Embedding,
    conv_in: Conv2d,
    down: [Vec<Resnet>; 2],
    down_attention: Vec<Attention>,
    downsample: Conv2d,
    mid: (Resnet, Attention, Resnet),
    up: [Vec<Resnet>; 2],
    up_attention: Vec<Attention>,
    upsample: Conv2d,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    fn new(vb: VarBuilder) -> Result<Self> {
        let [a, b] = WIDTHS;
        let resnets = |path: &str, shapes: &[(usize, usize)]| -> Result<Vec<Resnet>> {
            shapes.iter().enumerate().map(|(i, &(from, to))| Resnet::new(vb.pp(format!("{path}.resnets.{i}")), from, to)).collect()
        };
        let attentions = |path: &str, n: usize| (0..n).map(|i| Attention::new(vb.pp(format!("{path}.attentions.{i}")), b)).collect::<Result<Vec<_>>>();
        let mid = resnets("mid_block", &[(b, b), (b, b)])?;
        let [first, last] = <[Resnet; 2]>::try_from(mid).unwrap_or_else(|_| unreachable!("two were asked for"));
        Ok(Self {
            time: (linear(a, 4 * a, vb.pp("time_embedding.linear_1"))?, linear(4 * a, 4 * a, vb.pp("time_embedding.linear_2"))?),
            classes: embedding(CLASSES, 4 * a, vb.pp("class_embedding"))?,
            conv_in: conv2d(CHANNELS.0, a, 3, padded(), vb.pp("conv_in"))?,
            down: [resnets("down_blocks.0", &[(a, a), (a, a)])?, resnets("down_blocks.1", &[(a, b), (b, b)])?],
            down_attention: attentions("down_blocks.1", 2)?,
            downsample: conv2d(a, a, 3, Conv2dConfig { stride: 2, ..padded() }, vb.pp("down_blocks.0.downsamplers.0.conv"))?,
            mid: (first, Attention::new(vb.pp("mid_block.attentions.0"), b)?, last),
            up: [resnets("up_blocks.0", &[(2 * b, b), (2 * b, b), (a + b, b)])?, resnets("up_blocks.1", &[(a + b, a), (2 * a, a), (2 * a, a)])?],
            up_attention: attentions("up_blocks.0", 3)?,
            upsample: conv2d(b, b, 3, padded(), vb.pp("up_blocks.0.upsamplers.0.conv"))?,
            norm_out: group_norm(GROUPS, a, EPS, vb.pp("conv_norm_out"))?,
            conv_out: conv2d(a, CHANNELS.1, 3, padded(), vb.pp("conv_out"))?,
        })
    }

    fn forward(&self, sample: &Tensor, timestep: f64, classes: &Tensor) -> Result<Tensor> {
        let half = WIDTHS[0] / 2;
        let angles: Vec<f32> = (0..half).map(|i| (timestep * (-(i as f64) * 10_000f64.ln() / half as f64).exp()) as f32).collect();
        let angles = Tensor::from_vec(angles, (1, half), sample.device())?;
        let time = self.time.1.forward(&self.time.0.forward(&Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?)?.silu()?)?;
        let time = time.broadcast_add(&self.classes.forward(classes)?)?;
        let mut x = self.conv_in.forward(sample)?;
        let mut skips = vec![x.clone()];
        for resnet in &self.down[0] {
            x = resnet.forward(&x, &time)?;
            skips.push(x.clone());
        }
        x = self.downsample.forward(&x)?;
        skips.push(x.clone());
        for (resnet, attention) in self.down[1].iter().zip(&self.down_attention) {
            x = attention.forward(&resnet.forward(&x, &time)?)?;
            skips.push(x.clone());
        }
        x = self.mid.2.forward(&self.mid.1.forward(&self.mid.0.forward(&x, &time)?)?, &time)?;
        let mut joined = |x: &Tensor| Tensor::cat(&[x, &skips.pop().expect("as many as were pushed")], 1);
        for (resnet, attention) in self.up[0].iter().zip(&self.up_attention) {
            x = attention.forward(&resnet.forward(&joined(&x)?, &time)?)?;
        }
        x = self.upsample.forward(&x.upsample_nearest2d(SIDE, SIDE)?)?;
        for resnet in &self.up[1] {
            x = resnet.forward(&joined(&x)?, &time)?;
        }
        self.conv_out.forward(&self.norm_out.forward(&x)?.silu()?)
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let weights = args.next().expect("the UNet's safetensors file");
    let batch: usize = args.next().map_or(4, |n| n.parse().expect("the batch, a whole number"));
    let device = Device::Cpu;
    let tensors = candle_core::safetensors::load(weights, &device)?.into_iter().map(|(k, v)| Ok((k, v.to_dtype(DType::F32)?))).collect::<Result<_>>()?;
    let unet = Unet::new(VarBuilder::from_tensors(tensors, DType::F32, &device))?;
    if let Some(folder) = args.next() {
        let read = |name: &str| candle_core::safetensors::load(Path::new(&folder).join(name), &device);
        let (inputs, expected) = (read("inputs.safetensors")?, read("expected.safetensors")?["sample"].clone());
        let timestep = inputs["timestep"].to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?[0];
        let result = unet.forward(&inputs["sample"], timestep, &inputs["class_labels"].to_dtype(DType::U32)?)?;
        let error = ((&result - &expected)?.sqr()?.mean_all()? / expected.sqr()?.mean_all()?)?.sqrt()?.to_scalar::<f32>()?;
        println!("relative rms to naevus: {error:.1e}");
    }
    let sample = Tensor::randn(0f32, 1., (batch, CHANNELS.0, SIDE, SIDE), &device)?;
    let classes = Tensor::zeros(batch, DType::U32, &device)?;
    let mut times: Vec<f64> = vec![];
    for run in 0..RUNS + 3 {
        let start = Instant::now();
        unet.forward(&sample, 500., &classes)?.sum(D::Minus1)?;
        if run >= 3 {
            times.push(1e3 * start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    println!("candle, batch {batch}: {:.2} ms, {:.2} ... {:.2}, {RUNS} runs", times[RUNS / 2], times[0], times[RUNS - 1]);
    Ok(())
}
