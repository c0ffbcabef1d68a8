//! Where a node's directories are unless it is told: `./certs`, and the XDG Base Directory Specification.

use std::env;
use std::path::PathBuf;

use crate::proto::node::NodeName;

/// There is no default. Nothing changed; whoever starts the node must say where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither {variable} nor HOME is set: say where with {flag} DIR")]
pub struct NoPlace {
    variable: &'static str,
    flag: &'static str,
}

/// The certificate directory: `./certs` if it exists, else `$XDG_CONFIG_HOME/xpando/certs`.
///
/// # Errors
/// [`NoPlace`].
pub fn certs() -> Result<PathBuf, NoPlace> {
    let here = PathBuf::from("certs");
    if here.is_dir() {
        return Ok(here);
    }
    Ok(xdg("XDG_CONFIG_HOME", ".config", "--certs")?.join("xpando/certs"))
}

/// The data directory of a node: `$XDG_DATA_HOME/xpando/NAME`.
///
/// # Errors
/// [`NoPlace`].
pub fn data_dir(name: &NodeName) -> Result<PathBuf, NoPlace> {
    Ok(xdg("XDG_DATA_HOME", ".local/share", "--data-dir")?.join("xpando").join(name.as_str()))
}

fn xdg(variable: &'static str, below_home: &str, flag: &'static str) -> Result<PathBuf, NoPlace> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    match set(variable) {
        Some(base) => Ok(PathBuf::from(base)),
        None => {
            let home = set("HOME").ok_or(NoPlace { variable, flag })?;
            Ok(PathBuf::from(home).join(below_home))
        }
    }
}
