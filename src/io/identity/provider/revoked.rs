//! The file in which a system lists the ids of tokens that it has revoked: one a line.
//!
//! Invariants:
//! 1. Every line that is an id is taken, whatever the other lines are: a list with a fault in it revokes what it can.
//! 2. A list that cannot be read takes nothing back: what was revoked stays so, and it is read again at every look.
//! 3. What is kept of a list is bounded by [`MAX_REVOKED`].

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::{ProviderError, needed};
use crate::proto::token::check_id;

/// Longest list, in bytes: some 1.7 million ids of 36 characters.
pub(super) const MAX_REVOKED: usize = 64 * 1024 * 1024;

/// What a list says.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    ids: Arc<HashSet<Box<str>>>,
    /// Lines that are no ids, and the number of the first one.
    skipped: Option<(usize, usize)>,
    /// Why the list that is there now cannot be read; the ids are those of the one before.
    pub(super) unread: Option<String>,
}

impl Revoked {
    /// The list in a file; where that cannot be read, what the list before it says.
    ///
    /// # Errors
    /// [`ProviderError`]: it cannot be read, and there is none before it.
    pub(super) fn read(path: &Path, before: Option<&Self>) -> Result<Self, ProviderError> {
        match (text(path), before) {
            (Ok(text), _) => Ok(Self::of(&text)),
            (Err(error), None) => Err(error),
            (Err(error), Some(before)) => {
                let ids = before.ids.clone();
                Ok(Self { ids, skipped: None, unread: Some(error.to_string()) })
            }
        }
    }

    fn of(text: &[u8]) -> Self {
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
        // Lines end with LF, CR LF or CR.
        let lines = text.split(|byte| *byte == b'\n');
        let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let lines = lines.flat_map(|line| line.split(|byte| *byte == b'\r'));
        let (mut ids, mut skipped) = (HashSet::new(), None);
        for (number, line) in (1..).zip(lines) {
            match id(line) {
                Ok(None) => {}
                Ok(Some(id)) => drop(ids.insert(id.into())),
                Err(()) => skipped = skipped.map_or(Some((1, number)), |(n, at)| Some((n + 1, at))),
            }
        }
        Self { ids: Arc::new(ids), skipped, unread: None }
    }

    pub(super) fn has(&self, jti: &str) -> bool {
        self.ids.contains(jti)
    }

    /// That some lines are no ids, if there are such.
    pub(super) fn note(&self, path: &Path) -> Option<String> {
        let (many, first) = self.skipped?;
        let lines = if many == 1 { "one line".to_owned() } else { format!("{many} lines") };
        Some(format!(
            "{}: {lines} skipped that are no id of a token (the claim jti: 1 to 64 visible ASCII characters), the first is line {first}; {} ids are revoked",
            path.display(),
            self.ids.len(),
        ))
    }
}

/// The id in a line, which may be followed by a comment; `None`: there is none.
fn id(line: &[u8]) -> Result<Option<&str>, ()> {
    let line = line.trim_ascii();
    let comment = (0..line.len()).find(|at| {
        line.get(*at) == Some(&b'#')
            && at.checked_sub(1).and_then(|it| line.get(it)).is_none_or(u8::is_ascii_whitespace)
    });
    let line = line.get(..comment.unwrap_or(line.len())).unwrap_or_default().trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    let id = std::str::from_utf8(line).map_err(|_binary| ())?;
    check_id(id).map(|()| Some(id)).map_err(|_none| ())
}

fn text(path: &Path) -> Result<Vec<u8>, ProviderError> {
    let text = needed(path, MAX_REVOKED)?;
    let wide = text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff");
    let reason = "it is UTF-16: write it as UTF-8";
    if wide { Err(ProviderError::Content { path: path.to_owned(), reason }) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_an_id_is_taken() {
        let long = "x".repeat(65);
        for (text, ids, skipped) in [
            ("a\nb", vec!["a", "b"], None),
            ("\u{feff}a\r\nb\r\n\r\n", vec!["a", "b"], None),
            ("a\rb\rc d\re", vec!["a", "b", "e"], Some((1, 3))),
            ("# all\na # a phone\n\tb\t#x\n#\na#b", vec!["a", "a#b", "b"], None),
            (&format!("a\r\n{long}\r\nb\nd e\u{e9}\n"), vec!["a", "b"], Some((2, 2))),
            ("", vec![], None),
        ] {
            let list = Revoked::of(text.as_bytes());
            let mut found: Vec<_> = list.ids.iter().map(|it| &**it).collect();
            found.sort_unstable();
            assert_eq!((found, list.skipped), (ids, skipped), "{text:?}");
        }
        assert_eq!(Revoked::of(b"a\n\xff\x00\nb").skipped, Some((1, 2)));
    }
}
