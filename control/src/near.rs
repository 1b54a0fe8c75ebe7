//! Names that someone who mistyped may have meant.

use std::collections::BTreeSet;

/// As many names as an error message can show and still be read.
const NEAR_NAMES_MAX: usize = 5;

/// The names close to `wanted`, closest first, each once.
///
/// Close is: one contains the other, or a third of the letters (at least one) would have to change.
/// Upper and lower case are the same letter.
pub(crate) fn near_names<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let edits_max = (wanted.chars().count() / 3).max(1);
    let mut near: Vec<(usize, &str)> = names
        .collect::<BTreeSet<_>>()
        .into_iter()
        .filter_map(|name| Some((edits_to_match(&wanted, name, edits_max)?, name)))
        .collect();
    near.sort();
    near.truncate(NEAR_NAMES_MAX);
    near.into_iter().map(|(_, name)| name.to_owned()).collect()
}

fn edits_to_match(wanted: &str, name: &str, edits_max: usize) -> Option<usize> {
    let name = name.to_lowercase();
    let edits = edit_distance(wanted, &name);
    let contained = [(wanted, name.as_str()), (&name, wanted)]
        .iter()
        .any(|(outer, inner)| !inner.is_empty() && outer.contains(inner));
    (edits <= edits_max || contained).then_some(edits)
}

/// Letters to insert, delete, replace or swap with their neighbour, each of which costs one (optimal
/// string alignment).
fn edit_distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.chars().collect();
    let other: Vec<char> = other.chars().collect();
    // cost[i][j] turns the first i letters of `one` into the first j of `other`.
    let mut cost = vec![vec![0; other.len() + 1]; one.len() + 1];
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            if i == 0 || j == 0 {
                cost[i][j] = i + j;
                continue;
            }
            let replaced = cost[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
            cost[i][j] = replaced.min(cost[i - 1][j] + 1).min(cost[i][j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                cost[i][j] = cost[i][j].min(cost[i - 2][j - 2] + 1);
            }
        }
    }
    cost[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (one, other, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("web01", "wbe01", 1),
            ("ca", "abc", 3),
            ("größe", "grösse", 2),
        ] {
            assert_eq!(edit_distance(one, other), edits, "{one} {other}");
            assert_eq!(edit_distance(other, one), edits, "{other} {one}");
        }
    }

    #[test]
    fn closest_names_come_first_and_strangers_not_at_all() {
        let names = ["web01-old", "web02", "mail", "WEB01", "web01-old"];
        for wanted in ["web01", "wbe01"] {
            let near = near_names(wanted, names.into_iter());
            assert_eq!(near[0], "WEB01", "{wanted}: {near:?}");
        }
        let near = near_names("web01", names.into_iter());
        assert_eq!(near, ["WEB01", "web02", "web01-old"]);
        assert!(near_names("printer", names.into_iter()).is_empty());
    }

    #[test]
    fn few_names_are_shown_of_many() {
        let names: Vec<String> = (0..100).map(|n| format!("web{n:02}")).collect();
        let near = near_names("web", names.iter().map(String::as_str));
        assert_eq!(near.len(), NEAR_NAMES_MAX);
    }
}
