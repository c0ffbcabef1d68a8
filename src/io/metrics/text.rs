//! Metrics as Prometheus reads them: the text format, version 0.0.4.
//!
//! Counters and histograms come from the node's registry; gauges, what is true at this moment, and counters that are
//! kept elsewhere are gathered when somebody asks. prometheus-client writes OpenMetrics, in which a counter's family is named without `_total`; the
//! older format, which every tool reads, names it as its samples are.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge;
use prometheus_client::registry::Registry;

/// The content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauge = gauge::Gauge<f64, AtomicU64>;
type Counter = counter::Counter<f64, AtomicU64>;

/// What is gathered when somebody asks.
#[derive(Debug, Default)]
pub struct Gauges(Registry);

impl Gauges {
    /// One value.
    pub fn one(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::default();
        gauge.set(value);
        self.0.register(name, help, gauge);
    }

    /// A value for each set of labels.
    pub fn many(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        self.family(name, help, samples, |gauge: &Gauge, value| {
            gauge.set(value);
        });
    }

    /// A count that is kept elsewhere; `_total` is added to the name.
    pub fn count(&mut self, name: &str, help: &str, value: f64) {
        let counter = Counter::default();
        counter.inc_by(value);
        self.0.register(name, help, counter);
    }

    /// A count for each set of labels, likewise.
    pub fn counts(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        self.family(name, help, samples, |counter: &Counter, value| {
            counter.inc_by(value);
        });
    }

    fn family<M>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
        put: impl Fn(&M, f64),
    ) where
        M: EncodeMetric + TypedMetric + Default + fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::<Labels, M>::default();
        for (labels, value) in samples {
            put(&family.get_or_create(&labels), value);
        }
        self.0.register(name, help, family);
    }
}

/// Everything as text.
pub(super) fn text(registry: &Registry, gauges: &Gauges) -> Result<String, fmt::Error> {
    let mut open = String::new();
    encode_registry(&mut open, registry)?;
    encode_registry(&mut open, &gauges.0)?;
    let counter = |line: &str| {
        let family = line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?;
        Some(family.to_owned())
    };
    let counters: BTreeSet<String> = open.lines().filter_map(counter).collect();
    let mut text = String::with_capacity(open.len() + 16 * counters.len());
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT"), ..) => {}
            (Some("#"), Some(what), Some(family), Some(rest)) if counters.contains(family) => {
                writeln!(text, "# {what} {family}_total {rest}")?;
            }
            _ => writeln!(text, "{line}")?,
        }
    }
    Ok(text)
}
