//! Which tensors of a pickle are the model's, and what they are called.
//!
//! 1. A dict that holds a dict with tensors under one of [`WRAPPERS`] is left for that dict, the first of them in the table's order.
//!    This is repeated. What stands beside it (optimizer, epoch, hyper parameters) is skipped, and its names are noted.
//! 2. The tensors of the dict that is reached are the model's. Dicts, lists and tuples in it are descended into, and names joined with
//!    dots; numbers, texts and None are skipped and noted. Leftovers of training there are errors.
//! 3. A prefix of [`PREFIXES`] that all names share is taken off.

use std::collections::BTreeSet;

use crate::weights::json::shorten;
use crate::weights::torch::pickle::{Node, Ref, Tensor, Tree, words};

/// Names of the state dict in a dict, in the order of preference: averaged weights before those of the last step, as
/// their own repositories do it.
const WRAPPERS: [&str; 17] = [
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "params_ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net_state_dict",
    "network_state_dict",
    "params",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "teacher",
    "student",
];
/// What DataParallel and torch.compile put before every name.
const PREFIXES: [&str; 2] = ["module.", "_orig_mod."];
/// Deepest nesting of containers in a state dict, and of wrappers.
const MAX_DEPTH: usize = 16;
/// What timm's and PyTorch's training scripts call the architecture beside the state dict, and the longest one.
const ARCHITECTURE: &str = "arch";
const LONGEST_ARCHITECTURE: usize = 200;
/// Most tensors and skipped values.
const MAX_ENTRIES: usize = 1 << 20;
/// Bytes of a text that is kept, and of its name.
const LONGEST_TEXT: usize = 1024;

type Fact<T> = Result<T, String>;

/// A state dict.
pub(crate) struct State<'t, 'a> {
    /// Name, name in the file, tensor.
    pub tensors: Vec<(String, String, &'t Tensor<'a>)>,
    /// Paths of what was skipped, with what it is.
    pub skipped: Vec<String>,
    /// Texts at the top of the file, by name.
    pub texts: Vec<(String, String)>,
    /// What stands beside the state dict as [`ARCHITECTURE`].
    pub architecture: Option<String>,
}

/// The model's tensors. An error is a fact that lacks its place.
pub(crate) fn state<'t, 'a>(tree: &'t Tree<'a>) -> Fact<State<'t, 'a>> {
    let mut state = State { tensors: Vec::new(), skipped: Vec::new(), texts: Vec::new(), architecture: None };
    let (mut root, mut path) = (tree.root, String::new());
    for _ in 0..MAX_DEPTH {
        let Some((key, below)) = wrapped(tree, root) else { break };
        for (name, value) in entries(tree, root)?.into_iter().filter(|(name, _)| name != key) {
            state.skipped.push(format!("{path}{}: {}", shorten(&name), words(&tree.nodes[value])));
            if let (ARCHITECTURE, &Node::Text(text)) = (name.as_str(), &tree.nodes[value])
                && text.len() <= LONGEST_ARCHITECTURE
            {
                state.architecture = Some(text.to_string());
            }
        }
        path = format!("{path}{key}.");
        root = below;
    }
    if !matches!(tree.nodes[root], Node::Dict(_) | Node::List(_) | Node::Tuple(_)) {
        return Err(format!("holds {}, expected a state dict", words(&tree.nodes[root])));
    }
    collect(tree, root, &path, &mut state)?;
    if state.tensors.is_empty() {
        let beside = state.skipped.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(format!("holds no tensors, expected a state dict; there is {}", if beside.is_empty() { "nothing" } else { &beside }));
    }
    for prefix in PREFIXES {
        if state.tensors.iter().all(|(name, _, _)| name.starts_with(prefix)) {
            state.tensors.iter_mut().for_each(|(name, _, _)| *name = name[prefix.len()..].to_string());
            state.skipped.push(format!("`{prefix}` before every name"));
        }
    }
    let mut names = BTreeSet::new();
    match state.tensors.iter().find(|(name, _, _)| !names.insert(name)) {
        Some((name, _, _)) => Err(format!("tensor `{}` stands there twice", shorten(name))),
        None => Ok(state),
    }
}

/// The dict that `root` wraps, and its name there.
fn wrapped(tree: &Tree, root: Ref) -> Option<(&'static str, Ref)> {
    let Node::Dict(items) = &tree.nodes[root] else { return None };
    let find = |wrapper: &&str| items.iter().find(|(key, _)| tree.nodes[*key] == Node::Text(wrapper)).map(|(_, value)| *value);
    WRAPPERS.iter().filter_map(|wrapper| Some((*wrapper, find(wrapper)?))).find(|(_, below)| *below != root && holds_tensors(tree, *below))
}

/// Whether a dict holds a tensor, or is itself a wrapper of such a dict (two deep at most).
fn holds_tensors(tree: &Tree, at: Ref) -> bool {
    let values = |at: Ref| match &tree.nodes[at] {
        Node::Dict(items) => items.as_slice(),
        _ => &[],
    };
    let is_tensor = |value: Ref| matches!(tree.nodes[value], Node::Tensor(_));
    let is_wrapper = |key: Ref| matches!(tree.nodes[key], Node::Text(text) if WRAPPERS.contains(&text));
    values(at).iter().any(|(key, value)| is_tensor(*value) || (is_wrapper(*key) && values(*value).iter().any(|(_, below)| is_tensor(*below))))
}

/// The entries of a container by name.
fn entries(tree: &Tree, at: Ref) -> Fact<Vec<(String, Ref)>> {
    let name = |key: Ref| match &tree.nodes[key] {
        Node::Text(text) => Ok(text.to_string()),
        Node::Int(number) => Ok(number.to_string()),
        other => Err(format!("an entry named by {}, expected a text", words(other))),
    };
    match &tree.nodes[at] {
        Node::Dict(items) => items.iter().map(|(key, value)| Ok((name(*key)?, *value))).collect(),
        Node::List(items) | Node::Tuple(items) => Ok(items.iter().enumerate().map(|(i, item)| (i.to_string(), *item)).collect()),
        _ => Ok(Vec::new()),
    }
}

/// Tensors at and below `root`, by their paths. `own` is the path of the root in the file.
fn collect<'t, 'a>(tree: &'t Tree<'a>, root: Ref, own: &str, state: &mut State<'t, 'a>) -> Fact<()> {
    let mut left = vec![(String::new(), root, 0)];
    let mut visited = 0;
    while let Some((path, at, depth)) = left.pop() {
        let mut found = entries(tree, at).map_err(|fact| format!("{own}{}: {fact}", shorten(&path)))?;
        found.reverse();
        visited += found.len();
        if visited > MAX_ENTRIES || depth > MAX_DEPTH {
            return Err(format!("{own}{}: expected at most {MAX_ENTRIES} entries, nested at most {MAX_DEPTH} deep", shorten(&path)));
        }
        for (name, value) in found {
            let name = if path.is_empty() { name } else { format!("{path}.{name}") };
            match &tree.nodes[value] {
                Node::Tensor(tensor) => state.tensors.push((name.clone(), format!("{own}{name}"), tensor)),
                Node::Dict(_) | Node::List(_) | Node::Tuple(_) => left.push((name, value, depth + 1)),
                Node::Leftover(_) | Node::Storage(_) | Node::Global(_) => {
                    return Err(format!("{own}{}: is {}, expected a tensor", shorten(&name), words(&tree.nodes[value])));
                }
                plain => {
                    state.skipped.push(format!("{own}{}: {}", shorten(&name), words(plain)));
                    if let Node::Text(text) = plain
                        && depth == 0
                        && own.is_empty()
                        && name.len().max(text.len()) <= LONGEST_TEXT
                    {
                        state.texts.push((name, text.to_string()));
                    }
                }
            }
        }
    }
    Ok(())
}
