//! Logs on standard error: text for people, JSON for machines.

use std::io::IsTerminal;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// What to log: a level, or directives as of tracing's EnvFilter
    #[arg(long, value_name = "FILTER", env = "XPANDO_LOG", default_value = "info")]
    log: String,

    /// How to log
    #[arg(long, env = "XPANDO_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogArgs {
    pub(super) fn init(&self) -> anyhow::Result<()> {
        // ractor's own words about sessions repeat ours: they are for those who ask.
        let quiet =
            if self.log.contains("ractor") { "" } else { ",ractor=error,ractor_cluster=error" };
        let filter = EnvFilter::builder()
            .parse(format!("{}{quiet}", self.log))
            .with_context(|| format!("--log {:?}", self.log))?;
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => {
                let colour =
                    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
                logs.with_ansi(colour).with_target(false).init();
            }
            LogFormat::Json => logs.json().flatten_event(true).init(),
        }
        std::panic::set_hook(Box::new(|panic| {
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(%panic, %backtrace, "panic");
        }));
        Ok(())
    }
}
