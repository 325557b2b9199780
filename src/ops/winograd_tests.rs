//! The path against a direct sum in f64, whatever `is_faster` says of the shapes.

use super::*;
use crate::base::{Shape, rng};

fn layer(batch: u32, [in_h, in_w]: [u32; 2], [in_c, out_c]: [u32; 2], [top, bottom, left, right]: [u32; 4], has_bias: u32) -> Params {
    let (out_h, out_w) = (in_h + top + bottom - 2, in_w + left + right - 2);
    let (kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, groups) = (3, 3, 1, 1, 1, 1, 1);
    let (pad_top, pad_left) = (top, left);
    let sizes =
        Params { batch, in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left, ..bytemuck::Zeroable::zeroed() };
    Params { dilation_h, dilation_w, groups, has_bias, ..sizes }
}

/// x, weight, bias.
fn inputs(p: &Params) -> [Vec<f32>; 3] {
    let sizes = [p.batch * p.in_h * p.in_w * p.in_c, 9 * p.in_c * p.out_c, p.out_c];
    [0, 1, 2].map(|i| rng::normal(rng::name_seed("winograd"), i, 0, sizes[i as usize] as usize))
}

fn run(p: &Params, [x, weight, bias]: [&[f32]; 3]) -> Vec<f32> {
    let mut y = vec![f32::NAN; (p.batch * p.out_h * p.out_w * p.out_c) as usize];
    let shape = Shape::new(&[y.len()]);
    twin(&mut TwinCall { params: bytemuck::bytes_of(p), inputs: &[x, weight, bias, weight], shapes: &[], output: &mut y, output_shape: &shape }, p);
    y
}

fn direct(p: &Params, [x, weight, bias]: [&[f32]; 3]) -> Vec<f64> {
    let [out_h, out_w, in_h, in_w, in_c, out_c] = [p.out_h, p.out_w, p.in_h, p.in_w, p.in_c, p.out_c].map(|v| v as usize);
    let mut y = Vec::new();
    for pixel in 0..p.batch as usize * out_h * out_w {
        let mut sums: Vec<f64> = bias.iter().map(|&b| if p.has_bias != 0 { f64::from(b) } else { 0.0 }).collect();
        for cell in 0..9 {
            let ih = (pixel / out_w % out_h + cell / 3).wrapping_sub(p.pad_top as usize);
            let iw = (pixel % out_w + cell % 3).wrapping_sub(p.pad_left as usize);
            if ih >= in_h || iw >= in_w {
                continue;
            }
            for i in 0..in_c {
                let a = f64::from(x[((pixel / (out_w * out_h) * in_h + ih) * in_w + iw) * in_c + i]);
                sums.iter_mut().zip(&weight[(cell * in_c + i) * out_c..][..out_c]).for_each(|(sum, &w)| *sum += a * f64::from(w));
            }
        }
        y.extend(sums);
    }
    y
}

#[test]
fn it_is_the_direct_sum() {
    for (size, channels, padding, has_bias) in [
        ([13, 11], [37, 21], [1; 4], 1),
        ([4, 4], [16, 32], [1; 4], 0),
        ([3, 7], [5, 3], [0; 4], 1),
        ([9, 10], [20, 68], [2, 0, 1, 3], 1),
        ([1, 1], [16, 16], [1; 4], 1),
        // More tiles in a row than a panel has, several parts of the input channels, several blocks of the output channels.
        ([6, 150], [18, 16], [0, 1, 1, 1], 0),
        ([9, 9], [300, 17], [1; 4], 1),
        ([7, 8], [24, 200], [1; 4], 1),
    ] {
        let p = layer(2, size, channels, padding, has_bias);
        let values = inputs(&p);
        let given = [&values[0][..], &values[1][..], &values[2][..]];
        let (y, expected) = (run(&p, given), direct(&p, given));
        let rms = (expected.iter().map(|v| v * v).sum::<f64>() / expected.len() as f64).sqrt();
        let worst = y.iter().zip(&expected).map(|(&y, e)| (f64::from(y) - e).abs() / rms).fold(0.0, f64::max);
        assert!(worst < 1e-5, "{size:?} {channels:?} {padding:?}: {worst:.1e} of rms");
        // The second item alone: the same bits.
        let alone = run(&Params { batch: 1, ..p }, [&values[0][values[0].len() / 2..], given[1], given[2]]);
        assert!(alone.iter().zip(&y[y.len() / 2..]).all(|(a, b)| a.to_bits() == b.to_bits()), "{size:?}: the batch changes bits");
    }
}

#[test]
fn what_is_not_finite_is_seen_where_it_was() {
    let p = layer(1, [22, 19], [16, 20], [1; 4], 1);
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (h, w) in [(0, 0), (3, 4), (5, 7), (10, 10), (13, 18), (21, 6)] {
            let [mut x, weight, bias] = inputs(&p);
            x[(h * 19 + w) * 16 + 3] = odd;
            let y = run(&p, [&x, &weight, &bias]);
            for (pixel, y) in y.chunks_exact(20).enumerate() {
                let (down, right) = ((pixel / 19).abs_diff(h), (pixel % 19).abs_diff(w));
                if down <= 1 && right <= 1 {
                    assert!(y.iter().all(|v| !v.is_finite()), "{odd} at {h}, {w} is not seen in pixel {pixel}");
                } else if down > 4 || right > 4 {
                    assert!(y.iter().all(|v| v.is_finite()), "{odd} at {h}, {w} is seen in pixel {pixel}");
                }
            }
        }
    }
}

#[test]
fn few_tiles_and_large_weights_go_by_columns() {
    let image = |size, channels| is_faster(&layer(1, [size; 2], [channels; 2], [1; 4], 1));
    assert!(image(64, 640) && image(256, 128) && image(16, 96) && image(20, 1280) && image(12, 192) && image(13, 64));
    assert!(!image(8, 64) && !image(16, 1280) && !image(9, 64) && !image(64, 4) && !image(12, 320));
    let p = layer(1, [64, 64], [64, 64], [1; 4], 1);
    for other in [Params { stride_h: 2, ..p }, Params { kernel_w: 1, ..p }, Params { dilation_w: 2, ..p }, Params { groups: 2, ..p }, Params { out_h: 1, ..p }]
    {
        assert!(!is_faster(&other), "{other:?}");
    }
}
