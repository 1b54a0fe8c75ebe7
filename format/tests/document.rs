//! docs/format.md and docs/trust.md show what this crate writes: their worked examples are compared byte by byte.

#[expect(dead_code, reason = "the example's own main, which writes files")]
#[path = "../examples/worked_dump.rs"]
mod worked_dump;

const DOCUMENT: &str = include_str!("../../docs/format.md");
const TRUST: &str = include_str!("../../docs/trust.md");

#[test]
fn worked_examples_are_those_of_the_document() {
    for (name, text) in worked_dump::examples() {
        assert!(
            DOCUMENT.contains(&format!("```text\n{text}```\n")),
            "docs/format.md: the example '{name}' is not what worked_dump prints"
        );
    }
}

#[test]
fn worked_examples_of_trust_are_those_of_its_document() {
    for (name, text) in worked_dump::trust_examples() {
        assert!(
            TRUST.contains(&format!("```text\n{text}```\n")),
            "docs/trust.md: the example '{name}' is not what worked_dump prints"
        );
    }
}

#[test]
fn every_reason_code_is_in_the_document() {
    use undercroft_format::reason::Reason;
    for reason in (0..=u8::MAX).filter_map(Reason::from_code) {
        let line = format!("| {} | `{}` |", reason.code(), reason.text());
        assert!(DOCUMENT.contains(&line), "docs/format.md lacks {line}");
    }
}
