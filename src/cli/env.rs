//! Arguments from environment variables: an empty variable is unset, and an error names the variable it comes from.
//!
//! Compose files and service managers set `XPANDO_JOIN=` where nothing is configured.

use std::ffi::OsString;

use clap::builder::{OsStr, Resettable};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command, Error, Parser};

/// The parsed command line; usage errors, help and version end the program.
pub(super) fn parse<T: Parser>() -> T {
    let words: Vec<OsString> = std::env::args_os().collect();
    let mut command = without_empty(T::command());
    command.build(); // before, an argument cannot be shown as errors show it
    let parsed = command.clone().try_get_matches_from(&words);
    let parsed = parsed.and_then(|matches| T::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| named(error, &command, &words).exit())
}

/// The command as if variables that hold nothing were not set.
fn without_empty(command: Command) -> Command {
    let is_empty = |arg: &Arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        value.is_some_and(|value| value.to_string_lossy().trim().is_empty())
    };
    let unset = Resettable::<OsStr>::Reset;
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(unset.clone()) } else { arg });
    command.mut_subcommands(without_empty)
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
