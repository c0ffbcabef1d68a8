//! Where a node's directories are unless it is told: as the XDG Base Directory Specification has it, and the same
//! from every working directory.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::proto::node::NodeName;

/// There is no default. Nothing changed; anyone who starts the node must say where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither {variable} nor HOME is set: say where with {flag} DIR")]
pub struct NoPlace {
    variable: &'static str,
    flag: &'static str,
}

/// The certificate directory: `$XPANDO_CERTS`, else `$XDG_CONFIG_HOME/xpando/certs`. Programs of one user that are
/// given no other belong to one cluster, whether a command or a service starts the node.
///
/// # Errors
/// [`NoPlace`].
pub fn certs() -> Result<PathBuf, NoPlace> {
    if let Some(certs) = set("XPANDO_CERTS") {
        return Ok(PathBuf::from(certs));
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

/// A variable that is set; an empty one is not.
fn set(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn xdg(variable: &'static str, below_home: &str, flag: &'static str) -> Result<PathBuf, NoPlace> {
    // A relative one is to be ignored, says the specification: it would be another place from each directory.
    match set(variable).map(PathBuf::from).filter(|base| base.is_absolute()) {
        Some(base) => Ok(base),
        None => {
            let home = set("HOME").ok_or(NoPlace { variable, flag })?;
            Ok(PathBuf::from(home).join(below_home))
        }
    }
}
