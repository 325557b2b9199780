//! Floor 6: jobs over files. Data sets and their images, the classifier's view of an image, features and the selection of samples.
//! Image formats and tables are known here and nowhere below.

pub mod canvas;
pub mod class_plan;
pub mod clock;
pub mod conditioning;
pub mod contact_sheet;
pub mod dataset;
pub mod demo;
pub mod demo_models;
pub mod features;
pub mod files;
pub mod image;
mod jpeg;
pub mod manifest;
pub mod png_file;
pub mod reference;
pub mod resize;
pub mod run_settings;
pub mod select;
pub mod source_image;
pub mod sources;
pub mod synthesize;
pub mod transform;
