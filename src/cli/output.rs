//! What commands print: lines and tables for people, JSON for programs.
//!
//! Invariants: a line for people is one line whatever stands in it, and nothing of others reaches a terminal
//! unescaped (`proto::printable`); standard output that nobody reads any more is no failure.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, StdoutLock, Write};
use std::sync::mpsc::channel;
use std::time::Duration;

use comfy_table::{Attribute, Cell, Color, Table, presets};
use serde::Serialize;
use xpando_node::internals::proto::event::Status;
use xpando_node::internals::proto::printable::{Json, Printable};

/// How long the end of the program waits for each reader of what it says last.
pub(super) const LAST: Duration = Duration::from_secs(1);

/// Standard output; it remembers that its reader went.
pub(super) struct Stdout {
    lock: StdoutLock<'static>,
    closed: bool,
}

impl Stdout {
    pub(super) fn lock() -> Self {
        Self { lock: io::stdout().lock(), closed: false }
    }

    /// True once the reader is gone: `xpando-node ps | head`.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    fn seen<T>(&mut self, written: io::Result<T>) -> io::Result<T> {
        self.closed |= written.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
        written
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.lock.write(bytes);
        self.seen(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.lock.flush();
        self.seen(flushed)
    }
}

/// True when standard output is a terminal.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// True when people read this stream and want colours. An empty `NO_COLOR` counts as unset (no-color.org).
pub(super) fn has_colours(stream: impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
}

/// Prints a line for people.
macro_rules! write_line {
    ($out:expr $(,)?) => { $crate::cli::output::line($out, format_args!("")) };
    ($out:expr, $($text:tt)+) => { $crate::cli::output::line($out, format_args!($($text)+)) };
}
pub(super) use write_line;

pub(super) fn line<W: Write + ?Sized>(out: &mut W, text: fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(out, "{}", Printable(text))
}

/// Prints several lines.
pub(super) fn lines(out: &mut dyn Write, text: &str) -> io::Result<()> {
    text.lines().try_for_each(|text| write_line!(out, "{text}"))
}

/// Prints a value as JSON in one line.
pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    Ok(writeln!(out, "{}", Json(serde_json::to_string(value)?))?)
}

/// Prints a value as JSON for people.
pub(super) fn pretty_json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    Ok(writeln!(out, "{}", Json(serde_json::to_string_pretty(value)?))?)
}

/// Prints a line on standard error. Nobody is left to read when that is gone.
pub(super) fn notice(text: fmt::Arguments<'_>) {
    write_line!(&mut io::stderr().lock(), "xpando-node: {text}").unwrap_or(());
}

/// Prints why a command failed, on standard error: every cause once, in the order in which they led to the failure.
pub(super) fn failure(error: &anyhow::Error) {
    let commands = super::remedy::commands(error).into_iter();
    let commands: String = commands.map(|command| format!("\n  {command}")).collect();
    last_words(format!("xpando-node: {error:#}{commands}"));
}

/// Prints why the program ends on standard error, as far as that is read soon.
pub(super) fn last_words(text: String) {
    let (ends, ended) = channel::<()>();
    let printing = std::thread::Builder::new().spawn(move || {
        // Nobody is left to tell when standard error is gone.
        lines(&mut io::stderr().lock(), &text).unwrap_or(());
        drop(ends);
    });
    if printing.is_ok() {
        ended.recv_timeout(LAST).unwrap_or(());
    }
}

/// A table under titles.
pub(super) struct Columns(Table);

/// What stands in a column.
pub(super) struct Field {
    text: String,
    colour: Option<Color>,
}

impl Field {
    /// What is not known is a dash.
    pub(super) fn or_dash(text: Option<impl fmt::Display>) -> Self {
        text.map_or_else(|| Self::new("-"), Self::new)
    }

    pub(super) fn new(text: impl fmt::Display) -> Self {
        Self { text: Printable(text).to_string(), colour: None }
    }

    /// In the colour of a status.
    pub(super) fn coloured(self, status: Option<Status>) -> Self {
        let colour = match status {
            Some(Status::Online) => Color::Green,
            Some(Status::Offline) => Color::Red,
            Some(Status::Connecting | Status::Syncing) | None => Color::Yellow,
        };
        Self { colour: Some(colour), ..self }
    }
}

impl Columns {
    pub(super) fn new(titles: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let bold = |title: &&str| {
            let cell = Cell::new(title);
            if has_colours(io::stdout()) { cell.add_attribute(Attribute::Bold) } else { cell }
        };
        table.set_header(titles.iter().map(bold).collect::<Vec<_>>());
        Self(table)
    }

    pub(super) fn row<const N: usize>(&mut self, fields: [Field; N]) {
        let cell = |Field { text, colour }: Field| {
            let cell = Cell::new(text);
            match colour.filter(|_| has_colours(io::stdout())) {
                Some(colour) => cell.fg(colour),
                None => cell,
            }
        };
        self.0.add_row(fields.map(cell));
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_a_table_has_a_line_a_row() {
        let mut out = Vec::new();
        write_line!(&mut out, "a {}", "b\nxpando-node: c\u{1b}[1m").expect("written");
        assert_eq!(out, b"a b\\nxpando-node: c\\u{1b}[1m\n");
        let mut table = Columns::new(&["A", "B"]);
        table.row([Field::new("x\ny\u{202e}"), Field::or_dash(None::<&str>)]);
        let mut out = Vec::new();
        table.print(&mut out).expect("written");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("x\\ny\\u{202e}") && text.contains('-'), "{text}");
    }
}
