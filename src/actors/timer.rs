//! Time for actors: the clock they read, and one deadline that can be set anew.
//!
//! Invariant: an [`Alarm`] has at most one deadline; setting another forgets the one before.

use std::time::Instant;

use tokio::sync::watch;

/// Now, on the monotonic clock; paused when the runtime's clock is.
#[expect(clippy::disallowed_methods, reason = "the one home of the monotonic clock")]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// One deadline. Dropping the alarm cancels it.
#[derive(Debug)]
pub struct Alarm {
    deadline: watch::Sender<Option<Instant>>,
}

impl Alarm {
    /// An alarm that calls `ring` when its deadline passes, and is then unset.
    pub fn new(ring: impl Fn() + Send + 'static) -> Self {
        let (deadline, mut changes) = watch::channel(None::<Instant>);
        tokio::spawn(async move {
            loop {
                let next = *changes.borrow_and_update();
                let passed = async {
                    match next {
                        Some(at) => tokio::time::sleep_until(at.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = passed => {
                        ring();
                        if changes.changed().await.is_err() {
                            return;
                        }
                    }
                    changed = changes.changed() => if changed.is_err() { return },
                }
            }
        });
        Self { deadline }
    }

    /// Sets the deadline, or none. Setting the same future deadline again costs nothing.
    pub fn set(&self, at: Option<Instant>) {
        self.deadline.send_if_modified(|current| {
            let news = *current != at || at.is_some_and(|at| at <= now());
            *current = at;
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::mpsc;

    #[tokio::test(start_paused = true)]
    async fn only_the_last_deadline_rings_and_a_past_one_rings_again() {
        let (tx, mut rings) = mpsc::unbounded_channel();
        let alarm = Alarm::new(move || tx.send(now()).expect("the test listens"));
        let start = now();
        alarm.set(Some(start + Duration::from_secs(9)));
        alarm.set(Some(start + Duration::from_secs(2)));
        assert_eq!(rings.recv().await, Some(start + Duration::from_secs(2)));
        alarm.set(Some(start + Duration::from_secs(2)));
        assert_eq!(rings.recv().await, Some(start + Duration::from_secs(2)));
        alarm.set(Some(start + Duration::from_secs(5)));
        alarm.set(None);
        let silent = tokio::time::timeout(Duration::from_secs(60), rings.recv()).await;
        assert!(silent.is_err(), "no deadline, no ring");
        drop(alarm);
        assert_eq!(rings.recv().await, None, "the task ends with its alarm");
    }
}
