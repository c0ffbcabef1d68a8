//! Logs on standard error: text for people, JSON for machines.
//!
//! Invariant: nothing here waits for what reads standard error, or for a collector, longer than [`LAST`].

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::Context;
use clap::{Args, ValueEnum};
#[cfg(feature = "otel")]
use opentelemetry::KeyValue;
#[cfg(feature = "otel")]
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
#[cfg(feature = "otel")]
use opentelemetry_otlp::{LogExporter, WithExportConfig};
#[cfg(feature = "otel")]
use opentelemetry_sdk::{Resource, logs::SdkLoggerProvider};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};
use xpando_node::internals::io::metrics::Metrics;
use xpando_node::internals::node::QUIET;
use xpando_node::internals::proto::node::NodeName;

use super::fields::PrintableFields;
use super::output::{LAST, has_colours};

mod queue;
use queue::{Queue, Writer};

#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// What to log: a level, or directives as of tracing's EnvFilter
    #[arg(long, value_name = "FILTER", env = "XPANDO_LOG", default_value = "info")]
    log: String,

    /// How to log
    #[arg(long, env = "XPANDO_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// Also send log lines to an OpenTelemetry collector (OTLP over gRPC), such as http://127.0.0.1:4317
    #[cfg(feature = "otel")]
    #[arg(long, value_name = "URL", env = "XPANDO_OTLP")]
    otlp: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogArgs {
    /// Logs from now on, in the name of this node, until the result is closed; counts what is lost. With the feature
    /// `otel` a runtime must have been entered.
    pub(super) fn init(
        &self,
        #[cfg_attr(not(feature = "otel"), expect(unused_variables, reason = "for collectors"))]
        node: &NodeName,
        metrics: &Metrics,
    ) -> anyhow::Result<Logs> {
        // ractor's own lines are for those who ask.
        let quiet = if self.log.contains("ractor") { String::new() } else { format!(",{QUIET}") };
        let filter = EnvFilter::builder()
            .parse(format!("{}{quiet}", self.log))
            .with_context(|| format!("--log (XPANDO_LOG) {:?}", self.log))?;
        // A descriptor of its own: nobody waits for a lock that the writer holds while nobody reads.
        let stderr = std::io::stderr().as_fd().try_clone_to_owned().context("standard error")?;
        let (queue, writer) = Queue::start(File::from(stderr), metrics).context("the log")?;
        let lines = tracing_subscriber::fmt::layer().with_writer(queue);
        let lines = match self.log_format {
            LogFormat::Text => {
                let lines = lines.fmt_fields(PrintableFields).with_target(false);
                lines.with_ansi(has_colours(std::io::stderr())).boxed()
            }
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let logs = tracing_subscriber::registry().with(filter).with(lines);
        #[cfg(feature = "otel")]
        let collector = self.otlp.as_ref().map(|url| collector(url, node)).transpose()?;
        #[cfg(feature = "otel")]
        let logs = logs.with(collector.as_ref().map(collected));
        logs.init();
        std::panic::set_hook(Box::new(|panic| {
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(%panic, %backtrace, "panic");
        }));
        Ok(Logs {
            writer,
            #[cfg(feature = "otel")]
            collector,
        })
    }
}

/// What is logged and not yet read.
pub(super) struct Logs {
    writer: Writer,
    #[cfg(feature = "otel")]
    collector: Option<SdkLoggerProvider>,
}

impl Logs {
    /// Hands over what was logged last, as far as it is taken soon.
    pub(super) fn close(self) {
        #[cfg(feature = "otel")]
        if let Some(Err(error)) = self.collector.map(|it| it.shutdown_with_timeout(LAST)) {
            tracing::warn!(%error, "the collector did not get the last log lines");
        }
        self.writer.close(LAST);
    }
}

/// What sends log lines to a collector, in batches.
#[cfg(feature = "otel")]
fn collector(url: &str, node: &NodeName) -> anyhow::Result<SdkLoggerProvider> {
    let exporter = LogExporter::builder().with_tonic().with_endpoint(url).build();
    let exporter = exporter.with_context(|| format!("--otlp {url:?}"))?;
    let resource = Resource::builder()
        .with_service_name("xpando-node")
        .with_attribute(KeyValue::new("service.instance.id", node.to_string()))
        .build();
    Ok(SdkLoggerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build())
}

/// The program's own lines go there; what the exporter itself says stays here.
#[cfg(feature = "otel")]
fn collected<S>(provider: &SdkLoggerProvider) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let own = tracing_subscriber::filter::filter_fn(|it| it.target().starts_with("xpando_node"));
    OpenTelemetryTracingBridge::new(provider).with_filter(own)
}
