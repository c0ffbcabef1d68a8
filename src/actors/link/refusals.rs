//! Refused connections: counted, and logged at most once a minute per cause.

use std::net::SocketAddr;

use parking_lot::Mutex;

use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::proto::notices::Notices;

/// Counts every refused connection, and logs at most one a minute per cause.
#[derive(Debug)]
pub(super) struct RefusalLog {
    metrics: Metrics,
    notices: Mutex<Notices>,
}

impl RefusalLog {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics, notices: Mutex::default() }
    }

    pub(super) fn refused(
        &self,
        cause: &'static str,
        from: Option<SocketAddr>,
        detail: &dyn std::fmt::Display,
    ) {
        self.metrics.count(Count::Refused, cause);
        let due = self.notices.lock().due(cause, timer::now());
        let Some(unlogged) = due else { return };
        let from = from.map_or_else(|| "?".to_owned(), |from| from.to_string());
        tracing::warn!(cause, %from, %detail, unlogged, "connection refused");
    }
}
