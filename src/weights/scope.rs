//! Loading is accounting. A [`Scope`] is a store and a prefix: layers ask it for weights by the checkpoint's own names.
//! Nothing fails on the way; at the end one error lists all that is missing, misshapen, unusable or unread.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use crate::base::error::edit_distance;
use crate::base::{Array, Error, Halves, Kind, Result, Shape, Stored};
use crate::plan::{Layout, Weight};
use crate::weights::Store;
use crate::weights::json::shorten;

/// How many names of each sort an error lists before it counts.
const LISTED: usize = 8;
/// Names longer than this are not compared when the nearest is sought.
const LONGEST_COMPARED: usize = 160;

/// A place in a checkpoint, `down_blocks.0.resnets.1`. Clones share the account.
#[derive(Clone)]
pub struct Scope {
    ledger: Rc<Ledger>,
    prefix: String,
    name: String,
}

struct Ledger {
    model: String,
    store: Store,
    book: RefCell<Book>,
}

#[derive(Default)]
struct Book {
    used: BTreeSet<String>,
    missing: BTreeSet<String>,
    faults: Vec<String>,
    fault_count: usize,
    droppings: BTreeSet<String>,
    parameters: u64,
}

/// What was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Numbers in all parameters (buffers such as running means are not parameters).
    pub parameters: u64,
    /// Names in the file that the model does not need and says so.
    pub dropped: Vec<String>,
}

/// Values from which on 16-bit parameters stay 16-bit: below, their place is not worth widening them in every run.
const LARGE: usize = 1 << 14;

/// What was read of a parameter.
enum Read {
    Floats(Vec<f32>),
    Halves(Halves),
}

impl Scope {
    /// The root of the checkpoint at `path`; `model` names it in errors.
    pub fn open(path: &Path, model: &str) -> Result<Scope> {
        Ok(Scope::new(Store::open(path).map_err(|e| e.within(model))?, model))
    }

    pub fn new(store: Store, model: &str) -> Scope {
        let ledger = Ledger { model: model.to_string(), store, book: RefCell::default() };
        Scope { ledger: Rc::new(ledger), prefix: String::new(), name: String::new() }
    }

    /// The scope of the submodule `name`, which may hold several steps: `resnets.0`.
    pub fn child(&self, name: &str) -> Scope {
        Scope { ledger: Rc::clone(&self.ledger), prefix: self.full(name), name: name.to_string() }
    }

    /// The same place in the file under another module name: for checkpoints from before a module was renamed.
    pub fn named(self, name: &str) -> Scope {
        Scope { name: name.to_string(), ..self }
    }

    /// The name that this scope has in its parent: what the module opens on a tape.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The store behind the scope.
    pub fn store(&self) -> &Store {
        &self.ledger.store
    }

    /// Whether the checkpoint holds `name` here. Asking is not using.
    pub fn has(&self, name: &str) -> bool {
        self.ledger.store.shape(&self.full(name)).is_some()
    }

    /// Shape of `name` in PyTorch's axis order. Asking is not using.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.ledger.store.shape(&self.full(name))
    }

    /// The parameter `name`, expected in the shape `expected` (PyTorch's axis order), as f32 in ours.
    /// When it can't be had this is noted for [`Scope::finish`], and the result has the right shape but no values.
    pub fn weight(&self, name: &str, expected: &[usize], layout: Layout) -> Weight {
        let weight = self.buffer(name, expected, layout);
        self.ledger.book.borrow_mut().parameters += weight.array.len() as u64;
        weight
    }

    /// Like [`Scope::weight`] for what PyTorch calls a buffer: it is not counted as a parameter.
    pub fn buffer(&self, name: &str, expected: &[usize], layout: Layout) -> Weight {
        let full = self.full(name);
        let order = layout.order();
        match self.values(&full, expected) {
            Some(Read::Halves(halves)) => Weight::new(&full, Stored::halves(expected, halves, order)),
            Some(Read::Floats(data)) => {
                let array = Array { shape: Shape::new(expected), data };
                Weight::new(&full, if let Some(order) = order { array.permute(order) } else { array })
            }
            None => {
                let dims: Vec<usize> = order.map_or(expected.to_vec(), |order| order.iter().map(|&axis| expected[axis]).collect());
                Weight::new(&full, Array { shape: Shape::new(&dims), data: Vec::new() })
            }
        }
    }

    /// Values of `full` in the file's order; None and a note when they are not there or not as expected.
    fn values(&self, full: &str, expected: &[usize]) -> Option<Read> {
        let store = &self.ledger.store;
        let Some(shape) = store.shape(full) else {
            self.ledger.book.borrow_mut().missing.insert(full.to_string());
            return None;
        };
        self.ledger.book.borrow_mut().used.insert(full.to_string());
        if shape != expected {
            self.note(format!("{} is {shape:?}, expected {expected:?}", store.told(full)));
            return None;
        }
        if expected.contains(&0) {
            self.note(format!("{} is {shape:?}, expected values", store.told(full)));
            return None;
        }
        let halves = if expected.iter().product::<usize>() >= LARGE { store.halves(full) } else { None };
        if let Some(halves) = halves {
            if let Some((at, value)) = halves.first_nonfinite() {
                self.note(format!("{} holds {value} at element {at}, expected finite values", store.told(full)));
                return None;
            }
            return Some(Read::Halves(halves));
        }
        let Some(values) = store.floats(full) else {
            let dtype = store.dtype(full).map_or(String::new(), |d| d.to_string());
            self.note(format!("{} has dtype {dtype}, expected F32, F16, BF16, F64, I8 or U8", store.told(full)));
            return None;
        };
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            self.note(format!("{} holds {} at element {at}, expected finite values", store.told(full), values[at]));
            return None;
        }
        Some(Read::Floats(values))
    }

    /// Notes that the module can't be made, for [`Scope::finish`]: `fact` says what was found and expected.
    pub fn fault(&self, fact: &str) {
        let place = if self.prefix.is_empty() { String::new() } else { format!("{}: ", self.prefix) };
        self.note(format!("{place}{fact}"));
    }

    fn note(&self, text: String) {
        let mut book = self.ledger.book.borrow_mut();
        book.fault_count += 1;
        if book.faults.len() < LISTED {
            book.faults.push(text);
        }
    }

    /// Declares that checkpoints hold `name` here and that nobody needs it: `num_batches_tracked` of a batch norm.
    pub fn dropping(&self, name: &str) {
        self.ledger.book.borrow_mut().droppings.insert(self.full(name));
    }

    /// Closes the account: fails with one error that lists everything missing, misshapen, unusable and unread.
    pub fn finish(&self) -> Result<Account> {
        let book = self.ledger.book.borrow();
        let (dropped, unused): (Vec<&str>, Vec<&str>) =
            self.ledger.store.names().filter(|name| !book.used.contains(*name)).partition(|name| book.droppings.contains(*name));
        let mut facts = book.faults.clone();
        if book.fault_count > facts.len() {
            facts.push(format!("and {} more", book.fault_count - facts.len()));
        }
        if !book.missing.is_empty() {
            let with_nearest = |name: &String| nearest(name, &unused).map_or(shorten(name), |near| format!("{} (nearest {near})", shorten(name)));
            facts.push(format!("missing {}", list(book.missing.iter().map(with_nearest), book.missing.len())));
        }
        if !unused.is_empty() {
            facts.push(format!("unused {}", list(unused.iter().map(|name| self.ledger.store.told(name)), unused.len())));
        }
        if facts.is_empty() {
            let own = self.ledger.store.dropped().iter().map(String::as_str);
            return Ok(Account { parameters: book.parameters, dropped: dropped.into_iter().chain(own).map(str::to_string).collect() });
        }
        Err(Error::new(Kind::Weights, &self.ledger.model, facts.join("; ")).remark(self.ledger.store.place()))
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}

fn list(names: impl Iterator<Item = String>, count: usize) -> String {
    let shown: Vec<String> = names.take(LISTED).collect();
    let more = if count > LISTED { format!(" and {} more", count - LISTED) } else { String::new() };
    shown.join(", ") + &more
}

/// The unread name that is most like `name`, when a third or less of it differs. Work is bounded by the names' length.
fn nearest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let allowed = name.len() / 3;
    let close = candidates.iter().filter(|c| c.len() <= LONGEST_COMPARED && c.len().abs_diff(name.len()) <= allowed).take(4096);
    let best = close.map(|c| (edit_distance(name, c), *c)).min()?;
    (name.len() <= LONGEST_COMPARED && best.0 <= allowed).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Writer;

    fn scope(tensors: &[(&str, &[usize], f32)]) -> Scope {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut writer = Writer::new();
        for (name, shape, value) in tensors {
            writer.f32(name, shape, vec![*value; shape.iter().product()]).unwrap();
        }
        writer.write(&path).unwrap();
        Scope::open(&path, "unet").unwrap()
    }

    #[test]
    fn axes_are_ours_and_parameters_are_counted() {
        let s = scope(&[("conv.weight", &[4, 3, 1, 2], 1.0), ("bn.running_mean", &[4], 0.0), ("bn.num_batches_tracked", &[], 0.0)]);
        let w = s.child("conv").weight("weight", &[4, 3, 1, 2], Layout::ConvWeight);
        assert_eq!((w.dims(), &*w.name), (&[1usize, 2, 3, 4][..], "conv.weight"));
        s.buffer("bn.running_mean", &[4], Layout::Plain);
        s.child("bn").dropping("num_batches_tracked");
        let account = s.finish().unwrap();
        assert_eq!((account.parameters, account.dropped), (24, vec!["bn.num_batches_tracked".to_string()]));
    }

    #[test]
    fn one_error_lists_everything() {
        let s = scope(&[("conv_in.weight", &[8, 4, 3, 3], 0.0), ("conv_out.wieght", &[1], 0.0), ("x_num_batches_tracked", &[1], 0.0), ("nan", &[2], f32::NAN)]);
        let w = s.weight("conv_in.weight", &[8, 9, 3, 3], Layout::ConvWeight);
        assert_eq!((w.dims(), w.array.len()), (&[3usize, 3, 9, 8][..], 0));
        s.weight("conv_out.weight", &[1], Layout::Plain);
        s.weight("nan", &[2], Layout::Plain);
        s.child("norm").fault("3 groups do not divide 8 channels");
        s.child("x").dropping("num_batches_tracked");
        let error = s.finish().unwrap_err();
        let text = error.to_string();
        let want = "unet: conv_in.weight is [8, 4, 3, 3], expected [8, 9, 3, 3]; nan holds NaN at element 0, expected finite values; \
                    norm: 3 groups do not divide 8 channels; missing conv_out.weight (nearest conv_out.wieght); \
                    unused conv_out.wieght, x_num_batches_tracked (";
        assert!(text.starts_with(want), "{text}");
        assert!(text.ends_with("model.safetensors)"));
        assert_eq!(error.kind(), Kind::Weights);
    }

    #[test]
    fn long_lists_are_counted_and_huge_shapes_cost_nothing() {
        let names: Vec<String> = (0..40).map(|i| format!("layer.{i}.weight")).collect();
        let tensors: Vec<(&str, &[usize], f32)> = names.iter().map(|n| (n.as_str(), &[1usize][..], 0.0)).collect();
        let s = scope(&tensors);
        for i in 0..100 {
            s.weight(&format!("block.{i}"), &[65_536, 65_536, 65_536, 65_536], Layout::ConvWeight);
        }
        let text = s.finish().unwrap_err().to_string();
        assert!(text.contains("and 92 more; unused") && text.contains("and 32 more (") && text.len() < 1000, "{text}");
    }
}
