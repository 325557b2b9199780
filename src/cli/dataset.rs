//! The flags that name a data set.

use std::path::PathBuf;

use super::Common;
use crate::base::Result;
use crate::driver::dataset::{DataSet, DataSetOptions};

#[derive(clap::Args, Clone)]
pub(crate) struct DataSetFlags {
    /// A folder per class, or a folder with labels.csv, images/ and masks/
    #[arg(long, value_name = "DIR")]
    pub(crate) dataset: Option<PathBuf>,
    /// A CSV of image ids and classes
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    #[arg(long, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
    /// <id>.png, <id>_segmentation.png or <id>_mask.png
    #[arg(long, value_name = "DIR")]
    pub(crate) masks: Option<PathBuf>,
    #[arg(long, value_name = "NAME")]
    pub(crate) id_column: Option<String>,
    #[arg(long, value_name = "NAME")]
    pub(crate) class_column: Option<String>,
    /// Lesion or patient
    #[arg(long, value_name = "NAME")]
    pub(crate) group_column: Option<String>,
}

impl DataSetFlags {
    pub(crate) fn options(&self) -> DataSetOptions {
        DataSetOptions {
            root: self.dataset.clone(),
            labels: self.labels.clone(),
            images: self.images.clone(),
            masks: self.masks.clone(),
            id_column: self.id_column.clone(),
            class_column: self.class_column.clone(),
            group_column: self.group_column.clone(),
        }
    }
}

/// Opens the data set and says which images of its table are not in the folder.
pub(crate) fn open(common: &Common, options: &DataSetOptions) -> Result<DataSet> {
    let set = DataSet::open(options)?;
    if !set.missing.is_empty() {
        let some: Vec<&str> = set.missing.iter().take(5).map(String::as_str).collect();
        common.say(format_args!("{} images of the table are not in the folder: {} ...", set.missing.len(), some.join(", ")));
    }
    Ok(set)
}
