//! Patterns of names: what a pattern that contains another says of it holds for every name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::trust::pattern::Pattern;

fuzz_target!(|texts: (&str, &str, &str)| {
    let (Ok(wide), Ok(narrow)) = (texts.0.parse::<Pattern>(), texts.1.parse::<Pattern>()) else {
        return;
    };
    assert!(wide.contains(&wide) && Pattern::any().contains(&wide));
    let name: String = texts.2.chars().take(256).collect();
    if wide.contains(&narrow) && narrow.matches(&name) {
        assert!(wide.matches(&name));
    }
});
