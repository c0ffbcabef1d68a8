//! What a test does where the machine lacks what it needs: it prints so and counts as skipped, or fails.
//!
//! `XPANDO_REQUIRE` lists needs that must be met, comma-separated: a test that lacks one of those fails. Each skip is
//! one line in the file that `XPANDO_SKIPS` names, because the runner shows nothing of tests that pass.

use std::fs::OpenOptions;
use std::io::Write;

/// Skips the calling test, which then returns: `need` is missing because of `why`.
///
/// # Panics
/// `need` is required.
#[track_caller]
pub(crate) fn skip(need: &str, why: &str) {
    let (line, set) = (format!("SKIPPED: {need}: {}", why.trim()), |name| std::env::var(name));
    let required = set("XPANDO_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|one| one.trim() == need), "{line}, and it is required");
    eprintln!("{line}");
    if let Ok(file) = set("XPANDO_SKIPS") {
        let file = OpenOptions::new().append(true).create(true).open(file);
        file.and_then(|mut file| writeln!(file, "{line}")).expect("the list of skips is writable");
    }
}
