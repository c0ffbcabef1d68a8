//! Metrics as Prometheus reads them: the text format, version 0.0.4.
//!
//! Counters and histograms come from the node's registry; gauges, what is true at this moment, and counters that are
//! kept elsewhere are gathered when somebody asks.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeMetric;
pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge;
use prometheus_client::registry::Registry;

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
    let mut text = String::new();
    encode(&mut text, registry)?;
    encode(&mut text, &gauges.0)?;
    Ok(text)
}
