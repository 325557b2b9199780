//! What training puts around a model's names: `model.` of a LightningModule, `module.` of DataParallel, `_orig_mod.` of torch.compile,
//! any attribute that holds the network; and what it leaves beside them.

use crate::base::Result;
use crate::weights::{Fate, Store};

/// Deepest wrapping: `model.module.net.`.
const MOST: usize = 4;

/// First parts of names that belong to the training: losses with their class weights, metrics, the counter of averaged weights.
const OF_TRAINING: [&str; 12] =
    ["criterion", "loss", "loss_fn", "loss_func", "loss_function", "class_weight", "class_weights", "metric", "metrics", "n_averaged", "_metrics", "accuracy"];
/// Beginnings of those of metrics, `val_auc`.
const OF_METRICS: [&str; 5] = ["train_", "val_", "valid_", "validation_", "test_"];

fn is_of_training(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or(name);
    OF_TRAINING.contains(&first) || OF_METRICS.iter().any(|start| first.starts_with(start))
}

/// What stands before every name of a model that `is_known` knows without it: `model.`. None: there is no such.
pub fn find(store: &Store, is_known: impl Fn(&Store) -> bool) -> Option<String> {
    let names = || store.names().filter(|name| !is_of_training(name));
    let first = names().next()?;
    let mut wrapper = String::new();
    for _ in 0..MOST {
        let (module, _) = first[wrapper.len()..].split_once('.')?;
        wrapper = format!("{wrapper}{module}.");
        if !names().all(|name| name.starts_with(&wrapper)) {
            return None;
        }
        if is_known(&store.under(&wrapper)) {
            return Some(wrapper);
        }
    }
    None
}

/// The tensors without `wrapper` before their names. Those without it, of the training, are dropped.
pub fn remove(store: Store, wrapper: &str) -> Result<Store> {
    store.renamed(|name, _| name.strip_prefix(wrapper).map_or(Fate::Drop, |inner| Fate::Rename(inner.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Writer;

    fn store(names: &[&str]) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut writer = Writer::new();
        names.iter().for_each(|name| writer.f32(name, &[1], vec![1.0]).unwrap());
        writer.write(&path).unwrap();
        Store::open(&path).unwrap()
    }

    fn is_known(store: &Store) -> bool {
        store.shape("conv1.weight").is_some()
    }

    #[test]
    fn one_module_around_all_names_is_found() {
        let found = |names: &[&str]| find(&store(names), is_known);
        assert_eq!(found(&["model.conv1.weight", "model.fc.weight"]).as_deref(), Some("model."));
        assert_eq!(found(&["net.module.conv1.weight", "net.module.fc.bias", "criterion.weight", "val_auc.scores"]).as_deref(), Some("net.module."));
        assert_eq!(found(&["module.conv1.weight", "n_averaged"]).as_deref(), Some("module."));
        assert_eq!(found(&["model.conv1.weight", "ema.conv1.weight"]), None);
        assert_eq!(found(&["model.conv1.weight", "head.weight"]), None);
        assert_eq!(found(&["model.stem.weight"]), None);
        assert_eq!(found(&["a.b.c.d.e.conv1.weight"]), None);
        assert_eq!(found(&["criterion.weight"]), None);
    }

    #[test]
    fn the_trainings_own_is_dropped() {
        let inner = remove(store(&["model.conv1.weight", "criterion.weight"]), "model.").unwrap();
        assert_eq!(inner.names().collect::<Vec<_>>(), ["conv1.weight"]);
        assert_eq!(inner.dropped(), ["criterion.weight"]);
        assert_eq!(inner.own_name("conv1.weight"), Some("model.conv1.weight"));
    }
}
