//! `forward` of an encoder or decoder that does not fit the device: image by image, or in tiles.

use crate::base::{Array, DType, Error, Kind, Result};
use crate::diffusion::tiles::{Patchwork, Tiles};
use crate::exec::Device;
use crate::models::{Component, Inputs, Model};
use crate::plan::{Options, Tape};
use crate::weights::Writer;

/// Whether a component may run in tiles.
pub(crate) fn may_be_cut(component: Component) -> bool {
    matches!(component, Component::VaeEncoder | Component::VaeDecoder)
}

/// The component prepared for `inputs` `[N, H, W, C]`, the first of which gives the size, cut as `tiles` says.
pub(crate) fn prepare(
    device: &Device,
    options: &Options,
    model: &dyn Model,
    component: Component,
    inputs: &[(String, Array)],
    tiles: Tiles,
) -> Result<Patchwork> {
    let shape = inputs.first().and_then(|(_, array)| array.shape.nhwc()).ok_or_else(|| Error::new(Kind::Shape, "--tiles", "no image to cut"))?;
    let unknown = || Error::new(Kind::Usage, "--tiles", "nothing says how many pixels a latent of this model has, expected off");
    let downscale = model.autoencoder().ok_or_else(unknown)?.downscale;
    let per_cell = if component == Component::VaeEncoder { downscale } else { 1 };
    let [batch, height, width, _] = shape;
    if !height.is_multiple_of(per_cell) || !width.is_multiple_of(per_cell) {
        return Err(Error::new(Kind::Shape, "--tiles", format!("an image of {width} x {height} pixels, expected multiples of {downscale} to cut it")));
    }
    let cells = [height / per_cell, width / per_cell];
    let mut record = |images: usize, [h, w]: [usize; 2]| {
        let mut tape = Tape::new();
        let tensors = inputs.iter().map(|(name, array)| {
            let &[_, height, width, channels] = array.dims() else { return Err(Error::new(Kind::Shape, name, format!("{}, expected an image", array.shape))) };
            let shape = [images, h * height / cells[0].max(1), w * width / cells[1].max(1), channels];
            Ok((name.clone(), tape.input(name, &shape, DType::F32)))
        });
        let tensors = Inputs::new(tensors.collect::<Result<Vec<_>>>()?);
        let outputs = model.record(&mut tape, component, &tensors)?;
        outputs.iter().for_each(|output| tape.output(&output.name, output.tensor));
        Ok(tape)
    };
    Patchwork::new(batch, cells, tiles, downscale, &mut record, &mut |tape| device.prepare(tape, options))
}

/// Runs it and writes its outputs, all of them images.
pub(crate) fn run(patchwork: &mut Patchwork, component: Component, inputs: &[(String, Array)], outputs: &[String], out: &mut Writer) -> Result<()> {
    let inputs: Vec<(&str, &Array)> = inputs.iter().map(|(name, array)| (name.as_str(), array)).collect();
    let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
    for (name, array) in names.iter().zip(patchwork.run(component.name(), &inputs, &names)?) {
        let array = array.to_channels_first();
        out.f32(name, array.dims(), array.data.clone())?;
    }
    Ok(())
}
