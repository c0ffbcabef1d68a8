//! A program in a terminal of 80 columns and 24 lines, which util-linux's `script` makes.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use super::{PROGRAM, skip, until};

/// A terminal in which the program runs. It is killed when the test drops it.
pub(crate) struct Terminal {
    process: Child,
    keys: ChildStdin,
    /// All that was written on it.
    written: Arc<Mutex<String>>,
}

impl Terminal {
    /// Runs the program with these arguments; skips the test where there is no `script`.
    pub(crate) fn run(args: &[&str]) -> Option<Self> {
        let quoted = args.iter().map(|arg| format!(" '{}'", arg.replace('\'', r"'\''")));
        let command = format!("stty rows 24 cols 80; exec {PROGRAM}{}", quoted.collect::<String>());
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"]);
        script.env("TERM", "xterm").env("SHELL", "/bin/sh");
        let mut process = match script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() {
            Ok(process) => process,
            Err(error) => {
                skip("script", &error.to_string());
                return None;
            }
        };
        let (keys, mut output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let written = Arc::new(Mutex::new(String::new()));
        let heard = written.clone();
        thread::spawn(move || {
            let (mut bytes, mut rest) = ([0; 4096], Vec::new());
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                rest.extend_from_slice(&bytes[..length]);
                // A character may come in two parts.
                let whole = rest.utf8_chunks().last().map_or(0, |last| {
                    let cut = if last.invalid().len() < 4 { last.invalid().len() } else { 0 };
                    rest.len() - cut
                });
                let text: Vec<u8> = rest.drain(..whole).collect();
                heard.lock().push_str(&String::from_utf8_lossy(&text));
            }
        });
        Some(Self { process, keys, written })
    }

    /// All that was written so far.
    pub(crate) fn written(&self) -> String {
        self.written.lock().clone()
    }

    /// Waits until what was written fits.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        until(&format!("{what} on the terminal"), || {
            let written = self.written();
            if fits(&written) { Ok(written) } else { Err(format!("{written:?}")) }
        })
    }

    /// Waits until this was written after what was written before; spaces may be jumps of the cursor.
    #[track_caller]
    pub(crate) fn shows(&self, text: &str) {
        self.until(&format!("{text:?}"), |written| {
            text.split(' ').all(|word| written.contains(word))
        });
        self.written.lock().clear();
    }

    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    /// Waits for the program to end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended already, unless the test failed or it never ends by itself.
        self.process.kill().unwrap_or(());
        drop(self.process.wait());
    }
}
