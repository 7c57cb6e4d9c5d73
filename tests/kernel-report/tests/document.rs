//! Sections of a document, which this program and tests write and hold it to.

use conformance::document::Section;
use std::fs;

const BEFORE: &str = "before\n<!-- table: begin -->\n";
const AFTER: &str = "<!-- table: end -->\nafter\n";

fn same(shown: &str, found: &str) -> bool {
    shown == found
}

#[test]
fn what_was_written_passes_the_check_and_the_rest_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("document.md");
    fs::write(&path, format!("{BEFORE}old\n{AFTER}")).unwrap();
    let section = || Section::open(&path, "table").unwrap();
    assert_eq!(section().shown(), "old\n");
    let refusal = section().check("new\n", same, "how to write it").unwrap_err();
    assert!(refusal.contains("how to write it") && refusal.contains("old"), "{refusal}");
    section().write("new\n").unwrap();
    section().check("new\n", same, "").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{BEFORE}new\n{AFTER}"));
}

#[test]
fn a_line_more_or_less_is_out_of_date() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("document.md");
    fs::write(&path, format!("{BEFORE}one\ntwo\n{AFTER}")).unwrap();
    let section = Section::open(&path, "table").unwrap();
    assert!(section.check("one\n", same, "").is_err());
    assert!(section.check("one\ntwo\nthree\n", same, "").is_err());
    section.check("one\nTWO\n", |shown, found| shown.eq_ignore_ascii_case(found), "").unwrap();
}

#[test]
fn a_document_without_the_section_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("document.md");
    assert!(Section::open(&path, "table").is_err());
    for text in ["text".into(), format!("{AFTER}{BEFORE}"), format!("{BEFORE}text")] {
        fs::write(&path, text).unwrap();
        assert!(Section::open(&path, "table").is_err());
    }
}
