//! How many samples each class gets: n_synthetic(j) = max(0, |head| - |class j|), or what the user says.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::base::{Error, Kind, Result};
use crate::ood::keep::kept_count;

/// The rule for the number of kept samples.
#[derive(Clone, Debug, PartialEq)]
pub enum Fill {
    /// Up to the largest class.
    Head,
    /// Up to this many images, real and synthetic.
    UpTo(usize),
    /// This many samples in each class.
    PerClass(usize),
    /// By class; classes beside it get none.
    Table(BTreeMap<String, usize>),
}

/// One line of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassPlan {
    pub class: String,
    /// Images in the data set.
    pub real: usize,
    /// Samples that should be kept.
    pub wanted: usize,
    /// Samples to make, of which the best gamma are kept.
    pub candidates: usize,
}

impl Fill {
    /// `head`, a number, or a CSV file with the columns `class,count`.
    pub fn parse(text: &str) -> Result<Fill> {
        if text == "head" {
            return Ok(Fill::Head);
        }
        match text.parse() {
            Ok(count) => Ok(Fill::UpTo(count)),
            Err(_) => table(Path::new(text)).map(Fill::Table),
        }
    }
}

fn table(path: &Path) -> Result<BTreeMap<String, usize>> {
    let place = |line: u64| format!("{}:{line}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e).remark("--fill takes head, a number, or a CSV file"))?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|e| Error::new(Kind::Format, place(1), e.to_string()))?;
    if headers.iter().ne(["class", "count"]) {
        return Err(Error::new(Kind::Format, place(1), format!("columns {:?}, expected class,count", headers.iter().collect::<Vec<_>>())));
    }
    let mut counts = BTreeMap::new();
    for row in reader.records() {
        let row = row.map_err(|e| Error::new(Kind::Format, place(e.position().map_or(0, csv::Position::line)), e.to_string()))?;
        let line = row.position().map_or(0, csv::Position::line);
        let count = row[1].parse().map_err(|_| Error::new(Kind::Format, place(line), format!("count `{}`, expected a whole number", &row[1])))?;
        if counts.insert(row[0].to_string(), count).is_some() {
            return Err(Error::new(Kind::Format, place(line), format!("class `{}` stands there twice", &row[0])));
        }
    }
    Ok(counts)
}

/// The plan for `classes`, each with its number of real images. `only` restricts it to those classes, in that order.
/// `gamma`, above 0 and at most 1, is the share of candidates that is kept.
pub fn plan(classes: &[(String, usize)], only: Option<&[String]>, fill: &Fill, gamma: f64) -> Result<Vec<ClassPlan>> {
    let known: Vec<&str> = classes.iter().map(|(name, _)| name.as_str()).collect();
    let unknown = |place: &str, name: &str| Error::new(Kind::Data, place, format!("the data set has no class `{name}`, it has {}", known.join(", ")));
    if let Fill::Table(counts) = fill
        && let Some(name) = counts.keys().find(|name| !known.contains(&name.as_str()))
    {
        return Err(unknown("--fill", name));
    }
    let head = classes.iter().map(|&(_, real)| real).max().unwrap_or(0);
    let names: Vec<&str> = only.map_or_else(|| known.clone(), |only| only.iter().map(String::as_str).collect());
    let line = |(at, name): (usize, &&str)| {
        let real = classes.iter().find(|(known, _)| known == name).ok_or_else(|| unknown("--classes", name))?.1;
        if names[..at].contains(name) {
            return Err(Error::new(Kind::Usage, "--classes", format!("`{name}` stands there twice")));
        }
        let wanted = match fill {
            Fill::Head => head.saturating_sub(real),
            Fill::UpTo(count) => count.saturating_sub(real),
            Fill::PerClass(count) => *count,
            Fill::Table(counts) => counts.get(*name).copied().unwrap_or(0),
        };
        Ok(ClassPlan { class: name.to_string(), real, wanted, candidates: candidates(wanted, gamma)? })
    };
    names.iter().enumerate().map(line).collect()
}

/// The least number of candidates of which [`kept_count`] keeps `wanted`.
pub fn candidates(wanted: usize, gamma: f64) -> Result<usize> {
    if !(gamma > 0.0 && gamma <= 1.0) {
        return Err(Error::new(Kind::Usage, "--gamma", format!("{gamma}, expected above 0 and at most 1")));
    }
    if wanted <= 1 {
        return Ok(wanted);
    }
    // gamma n + 1/2 reaches `wanted` here, but for rounding.
    let mut count = (((wanted as f64 - 0.5) / gamma) as usize).saturating_sub(1);
    while kept_count(gamma, count)? < wanted {
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes() -> Vec<(String, usize)> {
        vec![("df".to_string(), 60), ("nv".to_string(), 4323), ("vasc".to_string(), 80)]
    }

    fn wanted(fill: &Fill) -> Vec<usize> {
        plan(&classes(), None, fill, 1.0).unwrap().iter().map(|p| p.wanted).collect()
    }

    #[test]
    fn rules() {
        assert_eq!(wanted(&Fill::Head), [4263, 0, 4243]);
        assert_eq!(wanted(&Fill::UpTo(100)), [40, 0, 20]);
        assert_eq!(wanted(&Fill::PerClass(8)), [8, 8, 8]);
        assert_eq!(wanted(&Fill::Table([("vasc".to_string(), 5)].into())), [0, 0, 5]);
        let only = plan(&classes(), Some(&["vasc".to_string()]), &Fill::Head, 0.5).unwrap();
        assert_eq!(only, [ClassPlan { class: "vasc".to_string(), real: 80, wanted: 4243, candidates: 8485 }]);
    }

    /// What is kept of the candidates is what was wanted, and one candidate fewer would not do.
    #[test]
    fn candidates_are_enough_and_not_too_many() {
        for gamma in [0.01, 0.1, 0.2, 0.3, 0.37, 0.6, 0.7, 0.9, 1.0] {
            for wanted in 0..300 {
                let n = candidates(wanted, gamma).unwrap();
                assert!(kept_count(gamma, n).unwrap() >= wanted, "{wanted} {gamma}: {n}");
                assert!(n == 0 || kept_count(gamma, n - 1).unwrap() < wanted, "{wanted} {gamma}: {n} is too many");
            }
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let rows = [
            (plan(&classes(), Some(&["scc".to_string()]), &Fill::Head, 1.0), "--classes: the data set has no class `scc`, it has df, nv, vasc"),
            (plan(&classes(), Some(&["df".to_string(), "df".to_string()]), &Fill::Head, 1.0), "--classes: `df` stands there twice"),
            (plan(&classes(), None, &Fill::Table([("ak".to_string(), 5)].into()), 1.0), "--fill: the data set has no class `ak`"),
            (plan(&classes(), None, &Fill::Head, 0.0), "--gamma: 0, expected above 0 and at most 1"),
            (plan(&classes(), None, &Fill::Head, f64::NAN), "--gamma: NaN"),
        ];
        for (result, want) in rows {
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn tables_are_read_with_their_line_numbers() {
        assert_eq!(Fill::parse("head").unwrap(), Fill::Head);
        assert_eq!(Fill::parse("500").unwrap(), Fill::UpTo(500));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fill.csv");
        let parse = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Fill::parse(path.to_str().unwrap())
        };
        assert_eq!(parse("class,count\ndf, 3\nvasc,4\n").unwrap(), Fill::Table([("df".to_string(), 3), ("vasc".to_string(), 4)].into()));
        for (text, want) in [
            ("class,count\ndf,3\nvasc,many\n", ":3: count `many`, expected a whole number"),
            ("class,count\ndf,3\ndf,4\n", ":3: class `df` stands there twice"),
            ("class,count\ndf,3,4\n", ":2: "),
            ("name,n\ndf,3\n", ":1: columns [\"name\", \"n\"], expected class,count"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        assert!(Fill::parse("heads").unwrap_err().to_string().contains("--fill takes head, a number, or a CSV file"));
    }
}
