//! A strict reader of Prometheus' text format, version 0.0.4.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};

/// What was exposed: kinds of figures by name, and values by name and labels as they stand.
#[derive(Debug, Default)]
pub struct Exposition {
    /// `counter`, `gauge` or `histogram`, by name.
    pub kinds: BTreeMap<String, String>,
    values: BTreeMap<String, f64>,
}

impl Exposition {
    /// Reads `text`, and panics at the first thing that the format does not allow.
    pub fn parse(text: &str) -> Self {
        let mut read = Self::default();
        let mut help = None;
        let mut current: Option<String> = None;
        assert!(text.ends_with('\n'), "the last line ends");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, words) = rest.split_once(' ').expect("a name and a help");
                assert!(!words.trim().is_empty(), "{line}");
                help = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                assert_eq!(help.take().as_deref(), Some(name), "help before type");
                assert!(
                    ["counter", "gauge", "histogram"].contains(&kind),
                    "{line}: no type of ours"
                );
                let before = read.kinds.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "{name} stands twice");
                current = Some(name.to_owned());
            } else {
                let family = current.as_deref().expect("a type before values");
                read.value(line, family);
            }
        }
        read.check_histograms();
        read
    }

    fn value(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, rest.strip_suffix('}').expect("a closing brace")),
            None => (series, ""),
        };
        check_labels(labels, line);
        match self.kinds[family].as_str() {
            "histogram" => {
                let part = name.strip_prefix(family).expect(line);
                assert!(["_bucket", "_sum", "_count"].contains(&part), "{line}");
                assert_eq!(part == "_bucket", labels.contains("le=\""), "{line}");
            }
            kind => {
                assert_eq!(name, family, "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            }
        }
        let value: f64 = value.parse().expect(line);
        assert!(value.is_finite() && value >= 0.0, "{line}");
        let before = self.values.insert(series.to_owned(), value);
        assert_eq!(before, None, "{series} stands twice");
    }

    fn check_histograms(&self) {
        let counts = self.values.iter().filter_map(|(series, count)| {
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let family = name.strip_suffix("_count")?;
            (self.kinds.get(family)? == "histogram").then_some((family, labels, *count))
        });
        for (family, labels, count) in counts {
            let labels = labels.strip_suffix('}').expect("a brace");
            let of = |series: &&String| {
                series.starts_with(&format!("{family}_bucket{{")) && series.contains(labels)
            };
            let buckets: Vec<f64> = self
                .values
                .iter()
                .filter(|(series, _)| of(series))
                .map(|(_, value)| *value)
                .collect();
            assert!(buckets.len() > 2, "{family} has buckets");
            let most = buckets.iter().copied().fold(0.0, f64::max);
            assert_eq!(most, count, "{family}: the last bucket has all");
        }
    }

    /// The value of a series, as in `name{label="value"}`.
    pub fn get(&self, series: &str) -> f64 {
        let found = self.values.get(series);
        *found.unwrap_or_else(|| panic!("{series} is missing: {:#?}", self.values))
    }

    /// The sum over all labels.
    pub fn sum(&self, name: &str) -> f64 {
        let series = self.values.iter();
        series
            .filter(|(series, _)| series.split('{').next() == Some(name))
            .map(|(_, value)| value)
            .sum()
    }

    /// Fails if something that only grows is smaller than it was `before`.
    pub fn assert_grew_from(&self, before: &Self) {
        for (series, value) in &before.values {
            let name = series.split('{').next().unwrap_or_default();
            if self.kinds.get(name).is_some_and(|kind| kind == "counter") {
                assert!(
                    self.get(series) >= *value,
                    "{series} went back from {value}"
                );
            }
        }
    }

    /// All values of labels.
    pub fn label_values(&self) -> BTreeSet<&str> {
        self.values
            .keys()
            .flat_map(|series| series.split('"').skip(1).step_by(2))
            .collect()
    }
}

fn check_labels(labels: &str, line: &str) {
    let mut names = BTreeSet::new();
    for label in labels.split_terminator(',') {
        let (name, value) = label.split_once('=').expect(line);
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{line}"
        );
        assert!(names.insert(name), "{line}: {name} stands twice");
        let inner = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'));
        assert!(inner.is_some_and(|inner| !inner.contains('"')), "{line}");
    }
}
