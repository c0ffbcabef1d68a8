//! What lies in a `certs` directory, for people and for scripts.
//!
//! Owns the report's shape. Invariant: making it changes nothing, needs no private key, and a
//! damaged certificate becomes an entry that says so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::CertificateVerifier;
use super::disk::{self, Layout};
use super::pki::{Certificate, Root, fingerprint};
use super::{IdentityError, Remedy};
use crate::io::clock;
use crate::proto::node::NodeName;

/// Whose certificate an entry is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateKind {
    /// The cluster's authority, a root.
    Authority,
    /// An authority that a root signed.
    Intermediate,
    /// A node.
    #[default]
    Node,
}

/// One certificate of a `certs` directory. What could not be read is `None`, and `error` says why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CertificateInfo {
    /// The node's name; `None` for an authority.
    pub name: Option<NodeName>,
    /// Id of the certificate's key, 32 hexadecimal digits: of a node it is the node's id.
    pub id: Option<String>,
    /// Id of the cluster, 32 hexadecimal digits.
    pub cluster: Option<String>,
    /// Authority, intermediate authority or node.
    pub kind: CertificateKind,
    /// True when the cluster's authority was made by a node on loopback for itself.
    pub development: bool,
    /// True when the authority has revoked the certificate.
    pub revoked: bool,
    /// Serial number, hexadecimal.
    pub serial: Option<String>,
    /// First valid instant, RFC 3339 in UTC.
    pub not_before: Option<String>,
    /// Last valid second, RFC 3339 in UTC.
    pub not_after: Option<String>,
    /// SHA-256 of the certificate, `AB:CD:…`.
    pub fingerprint: Option<String>,
    /// The certificate's file.
    pub path: PathBuf,
    /// Why the certificate is not fit for use; absent from JSON when it is. Dates are not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What an operator does about that, for people.
    #[serde(skip)]
    pub remedy: Remedy,
}

/// Every certificate in `certs`: the authority's first, then the nodes' in the order of their
/// names. A directory that does not exist has none.
///
/// # Errors
/// [`IdentityError::Io`] when `certs` itself cannot be listed.
pub fn inventory(certs: &Path) -> Result<Vec<CertificateInfo>, IdentityError> {
    let layout = Layout::new(certs);
    let nodes = nodes(certs)?;
    let missing = Remedy::MakeAuthority;
    let authority = CertificateVerifier::read(layout, missing);
    let revocations = authority.as_ref().map(|authority| authority.load_revocations(layout));
    let mut found = Vec::new();
    if layout.authority().is_dir() || !nodes.is_empty() {
        let mut infos = describe_authorities(layout, &authority);
        if let (Ok(Err(unusable)), Some(first)) = (&revocations, infos.first_mut()) {
            (first.error, first.remedy) = (Some(unusable.to_string()), unusable.remedy());
        }
        found.append(&mut infos);
    }
    found
        .extend(nodes.into_iter().map(|name| describe_node(layout, name, authority.as_ref().ok())));
    Ok(found)
}

/// The nodes that have a directory, sorted. Other entries are none of ours.
fn nodes(certs: &Path) -> Result<Vec<NodeName>, IdentityError> {
    let failed = |cause| IdentityError::Io { action: "list", path: certs.to_owned(), cause };
    let entries = match fs::read_dir(certs) {
        Ok(entries) => entries,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(other) => return Err(failed(other)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_str().and_then(|name| name.parse::<NodeName>().ok());
        // A directory with another spelling of the name is not the one a node would read.
        names.extend(name.filter(|n| entry.file_name() == n.as_str() && entry.path().is_dir()));
    }
    names.sort();
    Ok(names)
}

impl CertificateInfo {
    /// What a certificate says of itself.
    fn read(der: &[u8]) -> Self {
        let fingerprint = Some(fingerprint(der));
        let Ok(certificate) = Certificate::parse(der) else {
            return Self { fingerprint, ..Self::default() };
        };
        let validity = certificate.validity();
        Self {
            id: Some(certificate.key_id().to_string()),
            serial: Some(certificate.serial()),
            not_before: Some(clock::rfc3339(validity.not_before)),
            not_after: Some(clock::rfc3339(validity.not_after)),
            fingerprint,
            ..Self::default()
        }
    }

    fn unusable(error: &IdentityError) -> Self {
        let (error, remedy) = (Some(error.to_string()), error.remedy());
        Self { error, remedy, ..Self::default() }
    }
}

fn describe_authorities(
    layout: Layout<'_>,
    verifier: &Result<CertificateVerifier, IdentityError>,
) -> Vec<CertificateInfo> {
    let (kind, path) = (CertificateKind::Authority, layout.of_authority(disk::CERTIFICATE));
    let describe = |verifier: &CertificateVerifier, root: &Root| CertificateInfo {
        kind: if root.parent.is_some() { CertificateKind::Intermediate } else { kind },
        revoked: root.parent.is_some() && verifier.is_revoked(&root.serial),
        path: path.clone(),
        cluster: Some(verifier.cluster().to_string()),
        development: root.development,
        ..CertificateInfo::read(&root.der)
    };
    match verifier {
        Ok(verifier) => {
            verifier.trusted().bundle.roots().iter().map(|root| describe(verifier, root)).collect()
        }
        Err(error) => vec![CertificateInfo { kind, path, ..CertificateInfo::unusable(error) }],
    }
}

fn describe_node(
    layout: Layout<'_>,
    name: NodeName,
    verifier: Option<&CertificateVerifier>,
) -> CertificateInfo {
    let path = layout.certificate(&name);
    let der = disk::read_certificate(&path, layout.leaf_fix(&name));
    let mut info = match &der {
        Ok(der) => CertificateInfo::read(der),
        Err(error) => CertificateInfo::unusable(error),
    };
    (info.path, info.name) = (path, Some(name.clone()));
    let Ok(der) = der else { return info };
    let Some(verifier) = verifier else {
        info.error = Some("there is no sound authority's certificate to check it by".to_owned());
        return info;
    };
    info.cluster = Some(verifier.cluster().to_string());
    info.development = verifier.trusted().bundle.first().is_some_and(|root| root.development);
    info.revoked = info.serial.as_ref().is_some_and(|serial| verifier.is_revoked(serial));
    let examined = verifier.examine_of(&der, &name).map_err(layout.leaf_error(&name));
    if let Err(error) = examined {
        (info.error, info.remedy) = (Some(error.to_string()), error.remedy());
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::identity::{Authority, Validity};

    #[test]
    fn an_inventory_lists_what_is_sound_and_what_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path();
        assert_eq!(inventory(certs).unwrap(), []);
        assert_eq!(inventory(&certs.join("absent")).unwrap(), []);
        let authority = Authority::init(certs, clock::wall()).unwrap();
        let issue = |name: &str| {
            let validity = Validity::leaf(clock::wall());
            authority.issue(certs, &name.parse().unwrap(), validity).unwrap()
        };
        let (b, _, _) = (issue("b@h"), issue("a@h"), issue("c@h"));
        fs::write(certs.join("a@h/cert.pem"), "rubbish").unwrap();
        fs::copy(certs.join("b@h/cert.pem"), certs.join("c@h/cert.pem")).unwrap();
        fs::create_dir(certs.join("d@h")).unwrap();
        fs::create_dir(certs.join("not a node")).unwrap();

        let found = inventory(certs).unwrap();
        let names: Vec<_> =
            found.iter().map(|i| i.name.as_ref().map_or("ca", NodeName::as_str)).collect();
        assert_eq!(names, ["ca", "a@h", "b@h", "c@h", "d@h"]);
        let errors: Vec<_> = found.iter().map(|i| i.error.clone().unwrap_or_default()).collect();
        assert_eq!((errors[0].as_str(), errors[2].as_str()), ("", ""));
        assert!(errors[1].contains("damaged"), "{}", errors[1]);
        assert!(errors[3].contains("belongs to b@h, another node"), "{}", errors[3]);
        assert!(errors[4].contains("missing"), "{}", errors[4]);

        let json = serde_json::to_value(&found).unwrap();
        let cluster = authority.cluster().to_string();
        assert_eq!(json[0]["kind"], "authority");
        assert_eq!(json[0]["name"], serde_json::Value::Null);
        assert_eq!(json[0]["cluster"], cluster.as_str());
        assert_ne!(json[0]["id"], cluster.as_str());
        assert_eq!(json[0]["fingerprint"], authority.fingerprint());
        assert_eq!(json[2]["kind"], "node");
        assert_eq!(json[2]["id"], b.id().to_string());
        assert_eq!(json[2]["cluster"], cluster.as_str());
        assert_eq!(json[2]["not_after"], clock::rfc3339(b.validity().not_after));
        assert_eq!(json[2]["development"], false);
        assert!(json[2].get("error").is_none());
    }
}
