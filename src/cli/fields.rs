//! The fields of a log line as text: values of others stay within their line and do nothing to a terminal.
//!
//! `tracing_subscriber` escapes the message alone, and of fields only what is recorded with `?`.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use xpando_node::internals::proto::printable::Printable;

/// `message name=value name=value`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrintableFields;

impl<'w> FormatFields<'w> for PrintableFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Visitor { writer, separator: "", result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'w> {
    writer: Writer<'w>,
    separator: &'static str,
    result: fmt::Result,
}

impl Visitor<'_> {
    fn write(&mut self, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
        self.writer.write_str(self.separator)?;
        self.separator = " ";
        match name.strip_prefix("r#").unwrap_or(name) {
            "message" => {}
            name if self.writer.has_ansi_escapes() => {
                write!(self.writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?;
            }
            name => write!(self.writer, "{name}=")?,
        }
        write!(self.writer, "{}", Printable(value))
    }
}

impl Visit for Visitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.result.is_ok() {
            self.result = self.write(field.name(), format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::fmt::layer;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(colour: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = layer().fmt_fields(PrintableFields).without_time().with_target(false);
        let layer = layer.with_ansi(colour).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let cause = "closed\u{1b}[2J\n ERROR forged \u{202e}\u{9b}";
            tracing::warn!(%cause, topic = ?"a\u{200b}b", text = cause, n = 3, "link {}", "lost\r\n");
        });
        let bytes = lines.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_others_wrote_stays_within_its_field() {
        let escaped = r"closed\u{1b}[2J\n ERROR forged \u{202e}\u{9b}";
        let expected = format!(
            " WARN link lost\\r\\n cause={escaped} topic=\"a\\u{{200b}}b\" text=\"{escaped}\" n=3\n"
        );
        assert_eq!(logged(false), expected);
        let coloured = logged(true);
        assert!(coloured.contains(&format!("\u{1b}[3mcause\u{1b}[0m\u{1b}[2m=\u{1b}[0m{escaped}")));
        assert_eq!(coloured.lines().count(), 1, "{coloured}");
    }
}
