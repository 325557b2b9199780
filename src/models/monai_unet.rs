//! MONAI's `DiffusionModelUNet` in two dimensions. It is diffusers' `UNet2DModel`, or `UNet2DConditionModel` where it takes tokens,
//! under other names: same blocks, same order, same embedding of the timestep.
//! Source: `monai/networks/nets/diffusion_model_unet.py`; Pinaya et al., "Brain Imaging Generation with Latent Diffusion
//! Models" (2022).

use crate::base::Result;
use crate::models::model::{Architecture, Checkpoint, Model};
use crate::models::monai_config::{MonaiUnetConfig, is_target};
use crate::models::monai_names::{self, Dialect};
use crate::models::unet_2d::UNet2DModel;
use crate::models::unet_2d_condition::UNet2DConditionModel;
use crate::models::unet_2d_condition_config::UNet2DConditionConfig;
use crate::models::unet_2d_config::UNet2DConfig;
use crate::weights::{Config, Scope};

fn load(checkpoint: &Checkpoint) -> Result<Box<dyn Model>> {
    let monai = MonaiUnetConfig::from_config(checkpoint.config()?)?;
    let store = checkpoint.store()?;
    let generative = ["middle_block.attention.proj_attn.weight", "middle_block.attention.transformer_blocks.0.attn1.to_out.0.weight"];
    let dialect = Dialect { generative: generative.iter().any(|name| store.shape(name).is_some()), combined: monai.levels.combined };
    let scope = Scope::new(monai_names::unet(&monai.shape(), dialect).apply(store, |_| false)?, "unet");
    let config = Config::parse(&monai.diffusers().to_string(), checkpoint.config()?.place())?;
    if monai.tokens.is_some() {
        let mut config = UNet2DConditionConfig::from_config(&config)?;
        for block in config.down_blocks.iter_mut().chain(&mut config.up_blocks) {
            block.resnet_resample = monai.resnet_resample;
        }
        return Ok(Box::new(UNet2DConditionModel::from_scope(&scope, config)?));
    }
    let mut config = UNet2DConfig::from_config(&config)?;
    for block in config.down_blocks.iter_mut().chain(&mut config.up_blocks) {
        block.resnet_resample = monai.resnet_resample;
    }
    config.attention_head_dim = (0..monai.levels.channels.len()).map(|level| Some(monai.head_dim(level))).collect();
    config.layers_per_block = monai.levels.layers;
    Ok(Box::new(UNet2DModel::from_scope(&scope, config)?))
}

pub static ARCHITECTURE: Architecture = Architecture {
    name: "MONAI DiffusionModelUNet",
    is_config: |config| is_target(config, "DiffusionModelUNet"),
    is_tensors: |store| ["conv_in.conv.weight", "time_embed.0.weight", "middle_block.resnet_1.norm1.weight"].iter().all(|name| store.shape(name).is_some()),
    is_path: |_| false,
    load,
};

#[cfg(test)]
mod tests {
    use crate::models::recognise;
    use crate::weights::Writer;

    /// A bare state dict is known by its names, and cannot be run: heads and groups are in no shape.
    #[test]
    fn weights_alone_are_known_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        for (names, architecture) in [
            (vec!["conv_in.conv.weight", "time_embed.0.weight", "middle_block.resnet_1.norm1.weight"], "MONAI DiffusionModelUNet"),
            (vec!["encoder.blocks.0.conv.weight", "quant_conv_mu.conv.weight"], "MONAI AutoencoderKL"),
        ] {
            let mut writer = Writer::new();
            names.iter().for_each(|name| writer.f32(name, &[1], vec![0.0]).unwrap());
            writer.write(&path).unwrap();
            let found = recognise(&path).unwrap();
            assert_eq!(found.name(), architecture);
            assert!(found.load().err().unwrap().to_string().contains("no config.json beside the weights, expected one"));
        }
    }
}
