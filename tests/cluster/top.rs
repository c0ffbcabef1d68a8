//! `xpando-node top` in a terminal of 80 columns and 24 lines, which util-linux's `script` makes. Where there is no
//! `script`, the test says so and shows nothing.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::kit::{Cluster, Node, PROGRAM, skip, three, until};

/// A terminal in which `top` runs.
struct Terminal {
    process: Child,
    keys: ChildStdin,
    /// All that was written on it.
    said: Arc<Mutex<String>>,
}

impl Terminal {
    fn of(node: &Node) -> Option<Self> {
        let top = format!(
            "stty rows 24 cols 80; exec {PROGRAM} top --data-dir {}",
            node.data_dir.display()
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--flush", "--command", &top, "/dev/null"]);
        script.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut process) = script.spawn() else {
            skip("script", "script(1) is not installed");
            return None;
        };
        let (keys, mut output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                heard.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        Some(Self { process, keys, said })
    }

    /// Waits until this was written after what was written before; spaces may be jumps of the cursor.
    #[track_caller]
    fn shows(&self, text: &str) {
        until(&format!("{text:?} on the terminal"), || {
            let said = self.said.lock().unwrap().clone();
            let words = text.split(' ').all(|word| said.contains(word));
            if words { Ok(()) } else { Err(said) }
        });
        self.said.lock().unwrap().clear();
    }
}

#[test]
fn top_shows_the_cluster_as_it_changes_and_leaves_the_terminal_as_it_was() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let Some(mut terminal) = Terminal::of(&a) else { return };
    terminal.shows("a@127.0.0.1 b@127.0.0.1 c@127.0.0.1 3 of 3 online events");
    b.kill();
    terminal.shows("crashed 2");
    a.kill();
    terminal.shows("trying again");
    terminal.keys.write_all(b"q").unwrap();
    let left = "\u{1b}[?1049l"; // the other screen, which it drew on
    terminal.shows(left);
    assert!(terminal.process.wait().unwrap().success());
    drop(c);
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        self.process.kill().unwrap_or(());
    }
}
