//! Arguments from environment variables: an empty variable is unset, an empty value in a list is nothing, and an error names
//! the variable it comes from.
//!
//! Compose files and service managers set `XPANDO_JOIN=` where nothing is configured, and templates end lists with a separator.

use std::ffi::OsString;

use clap::builder::{OsStr, Resettable};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command, Error, Parser};

/// The parsed command line; usage errors, help and version end the program.
pub(super) fn parse<T: Parser>() -> T {
    let words: Vec<OsString> = std::env::args_os().collect();
    let mut command = T::command();
    let parsed = without_empty(command.clone()).try_get_matches_from(&words);
    command.build(); // before, an argument cannot be shown as errors show it
    let parsed = parsed.and_then(|matches| T::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| named(error, &command, &words).exit())
}

/// The command as if variables that hold nothing were not set, and separators with nothing between them not there.
fn without_empty(command: Command) -> Command {
    command.mut_args(without_blanks).mut_subcommands(without_empty)
}

fn without_blanks(arg: Arg) -> Arg {
    let unset = Resettable::<OsStr>::Reset;
    let Some(value) = arg.get_env().and_then(std::env::var_os) else { return arg };
    let Some(text) = value.to_str() else { return arg };
    if text.trim().is_empty() {
        return arg.env(unset);
    }
    let Some(separator) = arg.get_value_delimiter() else { return arg };
    let values: Vec<&str> = text.split(separator).filter(|it| !it.trim().is_empty()).collect();
    if values.len() == text.split(separator).count() {
        return arg;
    }
    // A command refers to texts that live as long as the program.
    let values: Vec<&'static str> =
        values.into_iter().map(|it| &*Box::leak(Box::<str>::from(it))).collect();
    let arg = arg.env(unset).hide_default_value(true);
    if values.is_empty() { arg } else { arg.default_values(values) }
}

/// The error with the variables in it that the arguments came from.
fn named(mut error: Error, command: &Command, words: &[OsString]) -> Error {
    for kind in [ContextKind::InvalidArg, ContextKind::PriorArg] {
        let Some(ContextValue::String(text)) = error.get(kind) else { continue };
        if let Some(variable) = variable(command, text, words) {
            let text = format!("{variable} (for {text})");
            error.insert(kind, ContextValue::String(text));
        }
    }
    error
}

/// The variable that gave an argument its value, if it was not given on the command line.
fn variable(command: &Command, text: &str, words: &[OsString]) -> Option<String> {
    let given = |arg: &Arg| {
        let flag = format!("--{}", arg.get_long().unwrap_or_default());
        words.iter().filter_map(|word| word.to_str()).any(|word| {
            word.strip_prefix(&flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    };
    let own = command.get_arguments().find(|arg| arg.to_string() == text && !given(arg));
    let own = own.and_then(Arg::get_env).map(|name| name.to_string_lossy().into_owned());
    own.or_else(|| command.get_subcommands().find_map(|it| variable(it, text, words)))
}
