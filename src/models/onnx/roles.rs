//! What a graph can serve as beside itself: a classifier or a segmenter of RGB images, told by its shapes.

use super::SIZE;
use crate::base::Result;
use crate::models::preprocess::Preprocess;
use crate::models::timm_config::labels;
use crate::weights::{Config, OnnxGraph, OnnxNode, OnnxPort, OnnxSize};

/// Which values are the logits and the features.
pub(super) struct Roles {
    pub(super) is_segmenter: bool,
    pub(super) preprocess: Preprocess,
    /// In the order of the logits.
    pub(super) label_names: Option<Vec<String>>,
    logits: String,
    features: Option<String>,
}

impl Roles {
    /// One input `[N, 3, H, W]`; a classifier has an output `[N, classes]`, a segmenter one `[N, classes, H, W]`.
    pub(super) fn of(graph: &OnnxGraph) -> Option<Roles> {
        let [input] = graph.inputs.as_slice() else { return None };
        let [_, OnnxSize::Fixed(3), rows, columns] = input.sizes.as_deref()? else { return None };
        let pixels = |size: &OnnxSize| if let OnnxSize::Fixed(size) = size { *size } else { SIZE };
        let preprocess = Preprocess { input_size: [pixels(rows), pixels(columns)], ..Preprocess::assumed(SIZE) };
        let rank = |output: &&OnnxPort, rank: usize| output.sizes.as_ref().is_some_and(|sizes| sizes.len() == rank);
        let vectors: Vec<&OnnxPort> = graph.outputs.iter().filter(|output| rank(output, 2)).collect();
        let named = |name: &str| vectors.iter().copied().find(|output| output.name == name);
        if let Some(logits) = named("logits").or(vectors.iter().copied().rfind(|output| output.name != "features")) {
            let others = || vectors.iter().copied().find(|output| output.name != logits.name);
            let scores = before(graph, &logits.name, &["Softmax"]);
            let features = named("features").or_else(others).map(|output| output.name.clone());
            let features = features.or_else(|| last_product(graph, &scores));
            return Some(Roles { is_segmenter: false, preprocess, label_names: None, logits: scores, features });
        }
        let same = |output: &&OnnxPort| output.sizes.as_deref().is_some_and(|sizes| matches!(sizes, [_, _, h, w] if h == rows && w == columns));
        let logits = graph.outputs.iter().find(same)?.name.clone();
        Some(Roles { is_segmenter: true, preprocess, label_names: None, logits, features: None })
    }

    /// Takes how pixels are prepared and what the classes are called from timm's configuration beside the file.
    pub(super) fn configured(&mut self, config: &Config, graph: &OnnxGraph) -> Result<()> {
        let pretrained = config.object("pretrained_cfg")?;
        let told = Preprocess::read(pretrained.as_ref().unwrap_or(config))?;
        let sizes = graph.inputs.first().and_then(|input| input.sizes.as_deref()).unwrap_or_default();
        let size = |axis: usize| match sizes.get(axis + 2) {
            Some(OnnxSize::Fixed(size)) => *size,
            _ => told.input_size[axis],
        };
        self.preprocess = Preprocess { input_size: [size(0), size(1)], ..told };
        let place = pretrained.as_ref().filter(|_| !config.has("label_names") && !config.has("labels")).unwrap_or(config);
        self.label_names = labels(place, None)?;
        Ok(())
    }

    /// Names and values.
    pub(super) fn outputs(&self) -> Vec<(&'static str, &String)> {
        self.features.iter().map(|name| ("features", name)).chain([("logits", &self.logits)]).collect()
    }
}

fn maker<'a>(graph: &'a OnnxGraph, value: &str) -> Option<&'a OnnxNode> {
    graph.nodes.iter().find(|node| node.outputs.iter().any(|output| output == value))
}

/// The value that `value` is made of, past nodes of the `operators` (and copies).
fn before(graph: &OnnxGraph, value: &str, operators: &[&str]) -> String {
    let mut at = value.to_string();
    // A graph may be a circle: it has no more steps than nodes.
    for _ in 0..graph.nodes.len() {
        match maker(graph, &at) {
            Some(node) if node.operator == "Identity" || operators.contains(&node.operator.as_str()) => match node.inputs.first() {
                Some(input) => at = input.clone(),
                None => break,
            },
            _ => break,
        }
    }
    at
}

/// What the last Gemm or MatMul (with a bias behind it) multiplies with its weight.
fn last_product(graph: &OnnxGraph, scores: &str) -> Option<String> {
    let node = maker(graph, scores)?;
    let node = match node.operator.as_str() {
        "Add" => node.inputs.iter().find_map(|input| maker(graph, input))?,
        _ => node,
    };
    let is_product = matches!(node.operator.as_str(), "Gemm" | "MatMul")
        && node.inputs.get(1).is_some_and(|weight| maker(graph, weight).is_none_or(|m| m.operator == "Transpose" || m.operator == "Identity"));
    is_product.then(|| node.inputs.first().cloned()).flatten()
}
