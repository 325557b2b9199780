//! Floor 4: models with their checkpoints' own names, and what a folder of files is. `load` reads a published layout
//! strictly; forward functions record onto a tape, at any batch.

pub mod class_tokens;
pub mod classifier;
pub mod clip_text;
pub mod densenet;
pub mod efficientnet;
pub mod efficientnet_timm;
pub mod efficientnet_torchvision;
pub mod inception;
pub mod inpaint_index;
pub mod inpaint_model;
pub mod model;
pub mod preprocess;
pub mod recognise;
pub mod resnet;
pub mod squeezenet;
pub mod taesd;
pub mod timm_config;
pub mod tokenizer;
pub mod unet_2d;
pub mod unet_2d_blocks;
pub mod unet_2d_config;
pub mod vit;

pub use classifier::Classifier;
pub use clip_text::ClipText;
pub use inpaint_index::InpaintIndex;
pub use inpaint_model::InpaintModel;
pub use model::{Architecture, Checkpoint, Component, Inputs, Model, Output, Port};
pub use preprocess::Preprocess;
pub use recognise::{Found, recognise};
pub use taesd::Taesd;
pub use timm_config::TimmConfig;
pub use tokenizer::Tokenizer;
pub use unet_2d::{ClassInput, UNet2DModel};
pub use unet_2d_config::UNet2DConfig;
