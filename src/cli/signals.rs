//! What signals do to a running node.
//!
//! | Signal | The node |
//! |---|---|
//! | TERM, INT, QUIT, PWR, XCPU, RTMIN+3 (what systemd's containers are stopped with) | says goodbye and ends |
//! | HUP | ends likewise when its terminal is gone; else looks at its files at once |
//! | USR1, USR2, ALRM, VTALRM, PROF, IO, STKFLT, XFSZ | logs it and goes on |
//! | PIPE | goes on |
//!
//! Signals have a thread and a runtime of their own: the node ends although all of its workers hang. Invariants: a
//! second signal to end, or [`LIMIT`] after the first, ends the process at once; a HUP that was ignored when the
//! program started (`nohup`) stays ignored.

use std::fs::File;
use std::process;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::output::last_words;

/// How long the goodbyes may take.
const LIMIT: Duration = Duration::from_secs(15);
/// Signal 37, `SIGRTMIN+3`.
const CONTAINER_STOP: i32 = 37;

/// What the node is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// To say goodbye and end.
    End,
    /// To look at its files at once.
    Look,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    End,
    Hangup,
    Log,
}

const HABITS: [(i32, &str, Habit); 15] = [
    (Signal::TERM.as_raw(), "SIGTERM", Habit::End),
    (Signal::INT.as_raw(), "SIGINT", Habit::End),
    (Signal::QUIT.as_raw(), "SIGQUIT", Habit::End),
    (Signal::POWER.as_raw(), "SIGPWR", Habit::End),
    (Signal::XCPU.as_raw(), "SIGXCPU", Habit::End),
    (CONTAINER_STOP, "SIGRTMIN+3", Habit::End),
    (Signal::HUP.as_raw(), "SIGHUP", Habit::Hangup),
    (Signal::USR1.as_raw(), "SIGUSR1", Habit::Log),
    (Signal::USR2.as_raw(), "SIGUSR2", Habit::Log),
    (Signal::ALARM.as_raw(), "SIGALRM", Habit::Log),
    (Signal::VTALARM.as_raw(), "SIGVTALRM", Habit::Log),
    (Signal::PROF.as_raw(), "SIGPROF", Habit::Log),
    (Signal::IO.as_raw(), "SIGIO", Habit::Log),
    (Signal::STKFLT.as_raw(), "SIGSTKFLT", Habit::Log),
    // The write that was too long for `ulimit -f` fails, too.
    (Signal::XFSZ.as_raw(), "SIGXFSZ", Habit::Log),
];

type Heard = (&'static str, Habit);

/// Catches signals from now on; what the node is to do.
pub(super) fn catch() -> anyhow::Result<UnboundedReceiver<Wish>> {
    let (wishes, wished) = unbounded_channel();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let heard = runtime.block_on(async { listen() })?;
    let had_terminal = has_terminal();
    let attending = move || runtime.block_on(attend(heard, wishes, had_terminal));
    std::thread::Builder::new().name("signals".to_owned()).spawn(attending)?;
    Ok(wished)
}

fn listen() -> anyhow::Result<UnboundedReceiver<Heard>> {
    let (hears, heard) = unbounded_channel();
    for (number, name, habit) in HABITS {
        if habit == Habit::Hangup && is_ignored(number) {
            continue;
        }
        let mut signals =
            signal(SignalKind::from_raw(number)).with_context(|| format!("cannot catch {name}"))?;
        let hears = hears.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() && hears.send((name, habit)).is_ok() {}
        });
    }
    Ok(heard)
}

/// Whether the process ignores a signal.
fn is_ignored(number: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}

/// Whether the process has a terminal that is still there.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

async fn attend(
    mut heard: UnboundedReceiver<Heard>,
    wishes: UnboundedSender<Wish>,
    had_terminal: bool,
) {
    while let Some((name, habit)) = heard.recv().await {
        let wish = match habit {
            Habit::End => Wish::End,
            Habit::Hangup if had_terminal && !has_terminal() => Wish::End,
            Habit::Hangup => Wish::Look,
            Habit::Log => {
                tracing::info!(signal = name, "signal without a meaning here: nothing changes");
                continue;
            }
        };
        tracing::info!(signal = name, "signal");
        // A node that does not take it any more is about to end by itself.
        wishes.send(wish).unwrap_or(());
        if wish == Wish::End {
            break;
        }
    }
    let again = async {
        loop {
            match heard.recv().await {
                Some((name, Habit::End)) => return name,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    };
    let why = match tokio::time::timeout(LIMIT, again).await {
        Ok(name) => format!("a second signal to end ({name})"),
        Err(_) => format!("the goodbyes took more than {} s", LIMIT.as_secs()),
    };
    last_words(format!("xpando-node: {why}: ended at once; peers may say that this node crashed"));
    end()
}

#[expect(clippy::exit, reason = "what hangs cannot be asked to end")]
fn end() -> ! {
    process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_ignored_is_known() {
        // Rust's runtime ignores SIGPIPE, and nothing else.
        assert!(is_ignored(Signal::PIPE.as_raw()));
        assert!(!is_ignored(Signal::TERM.as_raw()));
    }
}
