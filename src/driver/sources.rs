//! Which image gives its skin to which sample: a function of (seed, class, k) and of the data set, and of nothing else.

use serde::{Deserialize, Serialize};

use crate::base::{Error, Kind, Result, rng};

/// Whose images give the skin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Each image of the class once, then images of any class.
    SameClassThenAny,
    /// Images of the class, as often as needed.
    SameClass,
    /// Images of any class.
    Any,
    /// Images of the class that has most.
    Head,
    /// Images of any class, in one order for all: sample k of every class repaints the same image.
    Paired,
}

impl Policy {
    pub const NAMES: &'static [(&'static str, Policy)] = &[
        ("same-class-then-any", Policy::SameClassThenAny),
        ("same-class", Policy::SameClass),
        ("any", Policy::Any),
        ("head", Policy::Head),
        ("paired", Policy::Paired),
    ];

    /// The policy of that name.
    pub fn parse(name: &str) -> Result<Policy> {
        let found = Self::NAMES.iter().find(|(n, _)| *n == name).map(|&(_, policy)| policy);
        let names: Vec<&str> = Self::NAMES.iter().map(|(n, _)| *n).collect();
        found.ok_or_else(|| Error::new(Kind::Usage, "--sources", format!("{name}, expected one of {}", names.join(", "))))
    }

    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, policy)| *policy == self).map_or("", |(name, _)| name)
    }
}

/// Numbers of samples of one class that a key can tell apart.
pub const MAX_SAMPLES: u64 = 1 << 31;

/// The label that orders images for all classes alike.
const EVERY_CLASS: usize = u32::MAX as usize;

/// The noise's key of sample `k` of the class with `label`.
pub fn job(label: usize, k: u64) -> u64 {
    (label as u64) << 32 | k
}

/// The pools of images that samples of one class draw from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// First choice, once through, unless `own_again`.
    own: Vec<usize>,
    own_again: bool,
    /// What follows.
    rest: Vec<usize>,
    seed: u64,
    label: usize,
}

impl Sources {
    /// Pools for samples of `class`, whose label is `label`. `classes` has the class of each image that has a mask, in the data
    /// set's order; results are positions in it. Fails where the policy leaves no image.
    pub fn new(classes: &[&str], class: &str, label: usize, policy: Policy, seed: u64) -> Result<Sources> {
        let of = |wanted: &str| -> Vec<usize> { (0..classes.len()).filter(|&i| classes[i] == wanted).collect() };
        let any = || (0..classes.len()).collect();
        let (own, own_again, rest) = match policy {
            Policy::SameClassThenAny => (of(class), false, any()),
            Policy::SameClass => (of(class), true, vec![]),
            Policy::Any | Policy::Paired => (vec![], false, any()),
            Policy::Head => (vec![], false, head(classes).map_or(vec![], of)),
        };
        if own.is_empty() && rest.is_empty() {
            let fact = format!("no image with a mask for `{class}` by --sources {}", policy.name());
            return Err(Error::new(Kind::Data, "sources", fact));
        }
        let label = if policy == Policy::Paired { EVERY_CLASS } else { label };
        Ok(Sources { own, own_again, rest, seed, label })
    }

    /// Images for sample `k`, the first choice first; the next ones stand in when it can't be used. Each appears once.
    pub fn choices(&self, k: u64) -> Vec<usize> {
        let own = self.own.len() as u64;
        let from_own = self.own_again || k < own;
        let later = if from_own { k } else { k - own };
        let mut choices = if from_own { self.draw(&self.own, 0, k) } else { vec![] };
        let rest = self.draw(&self.rest, 1, later);
        // A pool is in the data set's order.
        choices.extend(rest.into_iter().filter(|i| !from_own || self.own.binary_search(i).is_err()));
        choices
    }

    /// `pool` in the order of the round that `k` is in, beginning with its image.
    fn draw(&self, pool: &[usize], tag: u64, k: u64) -> Vec<usize> {
        if pool.is_empty() {
            return vec![];
        }
        let len = pool.len() as u64;
        let order = shuffled(self.seed, job(self.label, u64::from(u32::MAX) - tag), k / len, pool.len());
        let first = (k % len) as usize;
        order[first..].iter().chain(&order[..first]).map(|&i| pool[i]).collect()
    }
}

/// The class with most images; of equals the first by name.
fn head<'a>(classes: &[&'a str]) -> Option<&'a str> {
    let mut names = classes.to_vec();
    names.sort_unstable();
    names.dedup();
    let count = |name: &str| classes.iter().filter(|&&c| c == name).count();
    names.into_iter().rev().max_by_key(|name| count(name))
}

/// A permutation of 0..len: Fisher and Yates, Knuth's form (TAOCP 3.4.2, algorithm P).
fn shuffled(seed: u64, job: u64, round: u64, len: usize) -> Vec<usize> {
    let draws = rng::uniform(seed, job, round, len);
    let mut order: Vec<usize> = (0..len).collect();
    for i in (1..len).rev() {
        order.swap(i, (f64::from(draws[i]) * (i + 1) as f64) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: &[&str] = &["df", "nv", "nv", "df", "mel", "nv", "df", "nv"];

    fn sources(policy: Policy) -> Sources {
        Sources::new(CLASSES, "df", 3, policy, 7).unwrap()
    }

    fn firsts(s: &Sources, k: std::ops::Range<u64>) -> Vec<usize> {
        k.map(|k| s.choices(k)[0]).collect()
    }

    #[test]
    fn own_images_come_first_and_once() {
        let s = sources(Policy::SameClassThenAny);
        let mut own = firsts(&s, 0..3);
        own.sort_unstable();
        assert_eq!(own, [0, 3, 6]);
        let mut any = firsts(&s, 3..11);
        any.sort_unstable();
        assert_eq!(any, (0..8).collect::<Vec<_>>(), "then every image once");
    }

    #[test]
    fn every_choice_is_tried_once() {
        for &(_, policy) in Policy::NAMES {
            let s = sources(policy);
            for k in 0..40 {
                let mut choices = s.choices(k);
                let len = choices.len();
                choices.sort_unstable();
                choices.dedup();
                assert_eq!(choices.len(), len, "{policy:?} {k}");
                let want = match policy {
                    Policy::SameClass => 3,
                    Policy::Head => 4,
                    _ => 8,
                };
                assert_eq!(len, want, "{policy:?} {k}");
            }
        }
    }

    #[test]
    fn rounds_repeat_a_pool_in_another_order() {
        let s = sources(Policy::SameClass);
        let rounds: Vec<Vec<usize>> = (0..8).map(|r| firsts(&s, 3 * r..3 * r + 3)).collect();
        for round in &rounds {
            let mut sorted = round.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 3, 6]);
        }
        assert!(rounds.iter().any(|r| *r != rounds[0]));
        let head = sources(Policy::Head);
        assert!(firsts(&head, 0..20).iter().all(|&i| CLASSES[i] == "nv"));
    }

    #[test]
    fn a_choice_depends_on_seed_and_class() {
        let wide: Vec<&str> = vec!["nv"; 200];
        let firsts = |label, seed| firsts(&Sources::new(&wide, "df", label, Policy::Any, seed).unwrap(), 0..50);
        assert_eq!(firsts(3, 7), firsts(3, 7));
        assert_ne!(firsts(3, 7), firsts(4, 7));
        assert_ne!(firsts(3, 7), firsts(3, 8));
    }

    #[test]
    fn paired_samples_of_every_class_share_a_source() {
        let of = |class: &str, label, seed| firsts(&Sources::new(CLASSES, class, label, Policy::Paired, seed).unwrap(), 0..20);
        assert_eq!(of("df", 3, 7), of("vasc", 6, 7));
        assert_ne!(of("df", 3, 7), of("df", 3, 8));
        let mut round = of("df", 3, 7)[..8].to_vec();
        round.sort_unstable();
        assert_eq!(round, (0..8).collect::<Vec<_>>(), "every image once");
    }

    #[test]
    fn a_policy_without_images_is_an_error() {
        let error = Sources::new(CLASSES, "vasc", 6, Policy::SameClass, 7).unwrap_err();
        assert_eq!(error.to_string(), "sources: no image with a mask for `vasc` by --sources same-class");
        assert!(Sources::new(&[], "df", 3, Policy::Any, 7).is_err());
        assert_eq!(Sources::new(CLASSES, "vasc", 6, Policy::SameClassThenAny, 7).unwrap().choices(0).len(), 8);
        assert!(Policy::parse("nearest").unwrap_err().to_string().starts_with("--sources: nearest, expected one of same-class-then-any"));
        assert!(Policy::NAMES.iter().all(|&(name, policy)| Policy::parse(name).unwrap() == policy && policy.name() == name));
    }
}
