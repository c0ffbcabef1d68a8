//! Text of others, safe to show on a terminal.
//!
//! Topics, events, payloads, causes and metadata come from clients and peers. Written to a terminal as they are, they
//! move the cursor, reorder or hide what stands beside them, or forge a line. Invariants: what [`Printable`] writes has
//! no control, direction or invisible character and is one line; ordinary text is unchanged, so writing it twice
//! changes nothing more.

use std::fmt::{self, Display, Write};

/// A value as one line without characters that a terminal obeys or hides: those are written as `\n`, `\r`, `\t`,
/// or `\u{1b}`.
#[derive(Clone, Copy, Debug)]
pub struct Printable<T>(pub T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape(f, plain), "{}", self.0)
    }
}

/// Bytes as text: what is not UTF-8 is written as `\xff`, the rest as [`Printable`] does.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            Printable(chunk.valid()).fmt(f)?;
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

/// JSON text in which the same characters are written as JSON's own escapes. It means the same: outside of its strings
/// JSON is ASCII, and white space there stays.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

impl<T: Display> Display for Json<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape(f, json), "{}", self.0)
    }
}

/// Writes on what a function replaces by nothing.
struct Escape<'a, 'f, F>(&'a mut fmt::Formatter<'f>, F)
where
    F: Fn(&mut fmt::Formatter<'f>, char) -> fmt::Result;

impl<'f, F: Fn(&mut fmt::Formatter<'f>, char) -> fmt::Result> Write for Escape<'_, 'f, F> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, odd)) = rest.char_indices().find(|(_, c)| !is_plain(*c)) {
            let (before, after) = rest.split_at(at);
            self.0.write_str(before)?;
            (self.1)(self.0, odd)?;
            rest = after.strip_prefix(odd).unwrap_or_default();
        }
        self.0.write_str(rest)
    }
}

fn plain(f: &mut fmt::Formatter<'_>, odd: char) -> fmt::Result {
    match odd {
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        _ => write!(f, "{}", odd.escape_unicode()),
    }
}

fn json(f: &mut fmt::Formatter<'_>, odd: char) -> fmt::Result {
    match odd {
        // Only white space between values: within strings they are escaped already.
        '\n' | '\r' | '\t' => f.write_char(odd),
        _ => odd.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(f, "\\u{unit:04x}")),
    }
}

/// Whether a character is shown as itself, in its place, and nothing more.
///
/// The others are controls (C0, DEL, C1), separators of lines and paragraphs, and Unicode's
/// `Default_Ignorable_Code_Point` (Unicode 16, DerivedCoreProperties): direction, zero width, fillers, tags, variation.
/// Of those the two that choose between a sign as text and as picture are ordinary text.
pub fn is_plain(c: char) -> bool {
    let hidden = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0d}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}');
    !c.is_control() && !hidden
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_obeys_or_hides_is_written_out() {
        for (text, shown) in [
            ("\u{1b}[2J\u{1b}]0;title\u{7}", "\\u{1b}[2J\\u{1b}]0;title\\u{7}"),
            ("one\ntwo\rthree\tfour", "one\\ntwo\\rthree\\tfour"),
            ("\u{9b}31m\u{85}\u{7f}\0", "\\u{9b}31m\\u{85}\\u{7f}\\u{0}"),
            ("a\u{202e}b\u{2066}c\u{200f}d\u{61c}", "a\\u{202e}b\\u{2066}c\\u{200f}d\\u{61c}"),
            ("ro\u{200b}om\u{2060}\u{feff}", "ro\\u{200b}om\\u{2060}\\u{feff}"),
            ("\u{e0041}\u{e0100}\u{2028}\u{2029}", "\\u{e0041}\\u{e0100}\\u{2028}\\u{2029}"),
            ("\u{ad}\u{3164}\u{fff9}\u{180e}", "\\u{ad}\\u{3164}\\u{fff9}\\u{180e}"),
        ] {
            assert_eq!(Printable(text).to_string(), shown);
            assert_eq!(Bytes(text.as_bytes()).to_string(), shown);
            assert_eq!(Printable(format_args!("{text}")).to_string(), shown, "in pieces too");
        }
    }

    #[test]
    fn ordinary_text_stays() {
        for text in ["", "Grüße, 世界! ¿\"é'\\ ❤\u{fe0f} e\u{301}", "नमस्ते", "C:\\new {\"a\":[1]}"]
        {
            assert_eq!(Printable(text).to_string(), text);
            assert_eq!(Bytes(text.as_bytes()).to_string(), text);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_written_out() {
        assert_eq!(Bytes(b"\xff\xc3(\x1b\xe2\x82").to_string(), "\\xff\\xc3(\\u{1b}\\xe2\\x82");
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({"a\u{9b}": "\u{202e}\u{1b}\n\u{e0041}\u{7f}é"});
        let text = Json(serde_json::to_string_pretty(&value).expect("JSON")).to_string();
        assert!(text.chars().all(|c| c == '\n' || is_plain(c)), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
    }

    proptest! {
        #[test]
        fn nothing_of_anybody_gets_through(text in ".*|[\\x00-\\x9f\\u{200b}-\\u{206f}]*", bytes: Vec<u8>) {
            for shown in [Printable(&text).to_string(), Bytes(&bytes).to_string()] {
                prop_assert!(shown.chars().all(is_plain), "{:?}", shown);
                prop_assert_eq!(Printable(&shown).to_string(), shown);
            }
            if text.chars().all(is_plain) {
                prop_assert_eq!(Printable(&text).to_string(), text.clone());
            }
            let json = serde_json::to_string(&text).expect("JSON");
            let shown = Json(&json).to_string();
            prop_assert!(shown.chars().all(is_plain), "{:?}", shown);
            prop_assert_eq!(serde_json::from_str::<String>(&shown).expect("JSON"), text);
        }
    }
}
