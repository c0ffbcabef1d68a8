//! Which proxies are trusted, and whose request it is that one of them passes on.
//!
//! # Protocol
//! A proxy appends the address that it was called from to `X-Forwarded-For`, or to `Forwarded` (RFC 7239) as `for=`. Read
//! from the right, the first address that is no trusted proxy is the client's: what stands left of it is what that
//! client wrote itself.
//!
//! # Invariants
//! 1. What a caller says that is not trusted is not looked at.
//! 2. Where both headers are there and name different clients, one of them is the client's own work: neither is believed,
//!    and the caller's own address counts.
//! 3. The answer is the caller's address or one that a trusted proxy has vouched for.

use std::net::IpAddr;
use std::str::FromStr;

/// A range of addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    bits: u32,
}

/// A text is no range of addresses. The operator must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a range of addresses: write ADDRESS or ADDRESS/BITS, such as 10.0.0.0/8 or ::1"
)]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError(text.to_owned());
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_neither_v4_nor_v6| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(width), |bits| bits.parse::<u32>().map_err(|_text| wrong()))?;
        if bits > width {
            return Err(wrong());
        }
        Ok(Self { address, bits })
    }
}

impl Cidr {
    fn contains(&self, address: IpAddr) -> bool {
        let differ = match (self.address, address) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                (one.to_bits() ^ other.to_bits()).leading_zeros()
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => {
                (one.to_bits() ^ other.to_bits()).leading_zeros()
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        differ >= self.bits
    }
}

/// The proxies whose word counts.
#[derive(Clone, Debug, Default)]
pub struct Proxies(Vec<Cidr>);

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAddress {
    /// The caller's own: it is no trusted proxy, or says nothing.
    Caller,
    /// Of this address.
    At(IpAddr),
    /// The two headers contradict each other: the caller's address counts.
    Contradiction,
}

impl Proxies {
    /// These.
    pub fn new(ranges: Vec<Cidr>) -> Self {
        Self(ranges)
    }

    /// Whether a caller from this address is one of them.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|range| range.contains(address))
    }

    /// Whose request it is that came from `caller` with these headers, each given in its order.
    pub fn client<'a>(
        &self,
        caller: IpAddr,
        x_forwarded_for: impl Iterator<Item = &'a str>,
        forwarded: impl Iterator<Item = &'a str>,
    ) -> ClientAddress {
        if !self.trusts(caller) {
            return ClientAddress::Caller;
        }
        let hops = x_forwarded_for.flat_map(|text| text.split(',')).map(hop);
        let one = self.last_stranger(hops.collect());
        let elements = forwarded.flat_map(|text| split(text, ','));
        let other =
            self.last_stranger(elements.map(|element| by_name(element).and_then(hop)).collect());
        match (one, other) {
            (None, None) => ClientAddress::Caller,
            (Some(client), None) | (None, Some(client)) => ClientAddress::At(client),
            (Some(one), Some(other)) if one == other => ClientAddress::At(one),
            (Some(_), Some(_)) => ClientAddress::Contradiction,
        }
    }

    /// The right-most address that is not trusted. Where a hop has none (`unknown`, a hidden name), or all are trusted, the
    /// one before it that a trusted proxy named.
    fn last_stranger(&self, hops: Vec<Option<IpAddr>>) -> Option<IpAddr> {
        let mut last = None;
        for hop in hops.into_iter().rev() {
            let Some(address) = hop else { break };
            last = Some(address);
            if !self.trusts(address) {
                break;
            }
        }
        last
    }
}

/// The address of a hop: alone or with a port, IPv6 in brackets or not.
fn hop(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(address, _port)| address)?,
        None if text.matches(':').count() == 1 => text.split_once(':').map(|(it, _port)| it)?,
        None => text,
    };
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// The value of `for` in an element of `Forwarded`.
fn by_name(element: &str) -> Option<&str> {
    let pairs = split(element, ';').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    let (_, value) = values.next()?;
    Some(value.trim().trim_matches('"'))
}

/// The parts of a text between separators that are not quoted.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(ranges: &[&str]) -> Proxies {
        Proxies::new(ranges.iter().map(|range| range.parse().expect("a range")).collect())
    }

    fn at(text: &str) -> ClientAddress {
        ClientAddress::At(text.parse().expect("an address"))
    }

    fn ask(trusted: &[&str], caller: &str, xff: &[&str], forwarded: &[&str]) -> ClientAddress {
        let caller = caller.parse().expect("an address");
        let (xff, forwarded) = (xff.iter().copied(), forwarded.iter().copied());
        proxies(trusted).client(caller, xff, forwarded)
    }

    #[test]
    fn a_caller_that_is_not_trusted_speaks_for_itself_alone() {
        let spoof = (&["1.2.3.4"][..], &["for=1.2.3.4"][..]);
        for trusted in [&[][..], &["10.0.0.2"], &["10.0.1.0/24"], &["::1"]] {
            assert_eq!(
                ask(trusted, "10.0.0.1", spoof.0, spoof.1),
                ClientAddress::Caller,
                "{trusted:?}"
            );
        }
        assert_eq!(ask(&["10.0.0.0/8"], "10.0.0.1", &[], &[]), ClientAddress::Caller);
    }

    #[test]
    fn the_right_most_address_that_is_not_trusted_is_the_client() {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"];
        for (caller, xff, client) in [
            ("10.0.0.1", &["1.2.3.4"][..], "1.2.3.4"),
            ("::ffff:10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["9.9.9.9, 1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["9.9.9.9", "1.2.3.4, 10.1.1.1,2001:db8::5"], "1.2.3.4"),
            ("2001:db8::1", &["1.2.3.4:5678"], "1.2.3.4"),
            ("10.0.0.1", &["[2001:db9::7]:5678"], "2001:db9::7"),
            ("10.0.0.1", &["2001:db9::7"], "2001:db9::7"),
            ("10.0.0.1", &["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
            ("10.0.0.1", &["1.2.3.4, unknown, 10.0.0.8"], "10.0.0.8"),
            ("10.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4"),
        ] {
            assert_eq!(ask(&trusted, caller, xff, &[]), at(client), "{caller} {xff:?}");
        }
        assert_eq!(ask(&trusted, "10.0.0.1", &["garbage"], &[]), ClientAddress::Caller);
        assert_eq!(ask(&trusted, "10.0.0.1", &["1.2.3.4, "], &[]), ClientAddress::Caller);
    }

    #[test]
    fn forwarded_is_read_as_the_standard_has_it() {
        for (forwarded, client) in [
            (&["for=1.2.3.4"][..], at("1.2.3.4")),
            (&["For=\"[2001:db9::7]:4711\""], at("2001:db9::7")),
            (&["by=10.0.0.9;for=9.9.9.9;proto=https, for=1.2.3.4;by=10.0.0.8"], at("1.2.3.4")),
            (&["for=9.9.9.9", "for=\"1.2.3.4:80\";host=\"a, for=5.5.5.5\""], at("1.2.3.4")),
            (&["for=1.2.3.4, for=10.0.0.8"], at("1.2.3.4")),
            (&["for=_hidden"], ClientAddress::Caller),
            (&["proto=https"], ClientAddress::Caller),
        ] {
            assert_eq!(ask(&["10.0.0.0/8"], "10.0.0.1", &[], forwarded), client, "{forwarded:?}");
        }
    }

    #[test]
    fn two_headers_that_contradict_each_other_are_not_believed() {
        let both = |xff, forwarded| ask(&["10.0.0.1"], "10.0.0.1", &[xff], &[forwarded]);
        assert_eq!(both("1.2.3.4", "for=1.2.3.4"), at("1.2.3.4"));
        assert_eq!(both("1.2.3.4", "for=5.5.5.5"), ClientAddress::Contradiction);
    }

    #[test]
    fn ranges_are_read_and_wrong_ones_named() {
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("192.168.1.128/25", "192.168.1.200", "192.168.1.1"),
            ("0.0.0.0/0", "8.8.8.8", "::1"),
            ("fd00::/8", "fdff::1", "fe80::1"),
            ("::1/128", "::1", "::2"),
        ] {
            let proxies = proxies(&[range]);
            assert!(proxies.trusts(inside.parse().expect("an address")), "{range} {inside}");
            assert!(!proxies.trusts(outside.parse().expect("an address")), "{range} {outside}");
        }
        for wrong in
            ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/x", "proxy", "10.0.0.0/-1"]
        {
            let error = wrong.parse::<Cidr>().expect_err(wrong).to_string();
            assert!(error.contains("is not a range of addresses: write"), "{error}");
        }
    }
}
