//! The egress guard: which addresses the gateway may connect to, and which hosts a provider's
//! requests may name.
//!
//! Names are resolved, every address is checked, and the connection goes to a checked address.
//! Nothing here sends anything but a DNS query.

mod embedded;

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::time::Instant;
use url::{Host, Url};

use super::fault::not_sent;
use angarium_domain::transmission::{Fault, FaultKind};

/// How long a name's checked addresses serve further connections.
const LOOKUP_LIFETIME: Duration = Duration::from_secs(5);
/// The most names that are remembered.
const LOOKUP_CAPACITY: usize = 4096;

/// Why an address or a URL is refused; the text names the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressRefusal {
    #[error("`{url}` is not a URL that can be called: {reason}")]
    Malformed { url: String, reason: String },
    #[error(
        "`{host}` leads to {address}, which is {reason}: the gateway does not connect there unless the operator adds its network to `egress.allow`"
    )]
    Denied { host: String, address: IpAddr, reason: &'static str },
    #[error("`{host}` can't be resolved: {reason}")]
    Unresolved { host: String, reason: String },
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(a: u16, b: u16, c: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), length)
}

/// IANA's special-purpose registry, and the clouds' metadata addresses that lie outside of it.
const DENIED_V4: &[(Ipv4Net, &str)] = &[
    (v4(0, 0, 0, 0, 8), "this host"),
    (v4(10, 0, 0, 0, 8), "a private network"),
    (v4(100, 64, 0, 0, 10), "carrier-grade NAT or a cloud's metadata service"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    (v4(168, 63, 129, 16, 32), "a cloud's metadata service"),
    (v4(169, 254, 0, 0, 16), "link-local or a cloud's metadata service"),
    (v4(172, 16, 0, 0, 12), "a private network"),
    (v4(192, 0, 0, 0, 24), "reserved for protocols or a cloud's metadata service"),
    (v4(192, 0, 2, 0, 24), "for documentation"),
    (v4(192, 88, 99, 0, 24), "a 6to4 relay"),
    (v4(192, 168, 0, 0, 16), "a private network"),
    (v4(198, 18, 0, 0, 15), "for benchmarks"),
    (v4(198, 51, 100, 0, 24), "for documentation"),
    (v4(203, 0, 113, 0, 24), "for documentation"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(240, 0, 0, 0, 4), "reserved"),
];

/// Denied networks inside 2000::/3; addresses outside of it are all denied.
const DENIED_V6: &[(Ipv6Net, &str)] = &[
    (v6(0x2001, 0, 0, 23), "reserved for protocols (Teredo, ORCHID, benchmarks)"),
    (v6(0x2001, 0xdb8, 0, 32), "for documentation"),
    (v6(0x3fff, 0, 0, 20), "for documentation"),
];

const GLOBAL_UNICAST: Ipv6Net = v6(0x2000, 0, 0, 3);

/// Whether an address, and each IPv4 address in it, is on the public internet.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    denial(address, &[]).is_none()
}

/// Returns why an address may not be called, by its own network or by that of an embedded IPv4 address, as far as the
/// operator's networks do not open it.
///
/// An IPv6 network of the operator's opens the IPv6 address alone, an IPv4 network the embedded address alone:
/// where both are denied, both have to be opened. An IPv4 network opens an embedded form only together with an
/// IPv6 network that holds the form, since a relay sees other networks behind an IPv4 address than this host does.
fn denial(address: IpAddr, allow: &[IpNet]) -> Option<&'static str> {
    let opened = |address: IpAddr| allow.iter().any(|net| net.contains(&address));
    let v6 = match address.to_canonical() {
        IpAddr::V4(plain) => return denial_v4(plain).filter(|_| !opened(plain.into())),
        IpAddr::V6(v6) => v6,
    };
    let whole = opened(v6.into());
    let inner = |v4: &Ipv4Addr| denial_v4(*v4).filter(|_| !(whole && opened((*v4).into())));
    let outer = || denial_v6(v6).filter(|_| !whole);
    embedded::v4_in(v6).iter().find_map(inner).or_else(outer)
}

fn denial_v4(address: Ipv4Addr) -> Option<&'static str> {
    DENIED_V4.iter().find(|(net, _)| net.contains(&address)).map(|(_, reason)| *reason)
}

/// Returns why an IPv6 address itself is not public, apart from any embedded address. NAT64's well-known prefix is as
/// public as the IPv4 address that it leads to.
fn denial_v6(address: Ipv6Addr) -> Option<&'static str> {
    if embedded::NAT64.contains(&address) {
        return None;
    }
    if !GLOBAL_UNICAST.contains(&address) {
        return Some(match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
            [first, ..] if first & 0xfe00 == 0xfc00 => "a private network",
            [first, ..] if first & 0xffc0 == 0xfe80 => "link-local",
            [first, ..] if first & 0xff00 == 0xff00 => "multicast",
            _ => "not global unicast",
        });
    }
    DENIED_V6.iter().find(|(net, _)| net.contains(&address)).map(|(_, reason)| *reason)
}

/// Addresses of a name.
pub type NameLookup = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, String>> + Send>>;

/// Turns names into addresses; tests put their own in place of the system's.
pub trait Resolver: Send + Sync {
    /// All addresses of a name, unchecked.
    fn lookup(&self, name: &str) -> NameLookup;
}

/// The system's resolver (`getaddrinfo`).
#[derive(Debug, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn lookup(&self, name: &str) -> NameLookup {
        let name = name.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(|error| error.to_string())?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

type Remembered = Arc<tokio::sync::Mutex<Option<(Instant, Arc<[IpAddr]>)>>>;

/// The guard, with the networks that the operator opened.
pub struct Egress {
    allow: Vec<IpNet>,
    resolver: Box<dyn Resolver>,
    lookup_lifetime: Duration,
    lookups: Mutex<HashMap<String, Remembered>>,
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("allow", &self.allow).finish_non_exhaustive()
    }
}

impl Egress {
    /// A guard that asks the system for addresses.
    #[must_use]
    pub fn new(allow: Vec<IpNet>) -> Self {
        Self::with_resolver(allow, Box::new(SystemResolver))
    }

    /// A guard that asks another resolver.
    #[must_use]
    pub fn with_resolver(allow: Vec<IpNet>, resolver: Box<dyn Resolver>) -> Self {
        Self { allow, resolver, lookup_lifetime: LOOKUP_LIFETIME, lookups: Mutex::default() }
    }

    /// Parses a URL as the client will, and makes the checks without DNS: the scheme, user names (which hide the real
    /// host from readers), and addresses in any notation.
    ///
    /// # Errors
    /// When it is not an absolute http or https URL, or leads to a denied address.
    pub fn check_url(&self, url: &str) -> Result<Url, EgressRefusal> {
        let malformed = |reason: &str| EgressRefusal::Malformed { url: shown(url), reason: reason.to_owned() };
        let parsed = Url::parse(url).map_err(|error| malformed(&error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(malformed("its scheme is neither http nor https"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(malformed("it holds a user name or a password; credentials belong into secrets"));
        }
        let host = parsed.host().ok_or_else(|| malformed("it has no host"))?;
        self.check_host(&host)?;
        Ok(parsed)
    }

    /// Checks a host that needs no DNS: an address, or a name for this machine. Other names pass
    /// here and are checked when they are resolved.
    ///
    /// # Errors
    /// When its address is denied.
    pub fn check_host<S: AsRef<str>>(&self, host: &Host<S>) -> Result<(), EgressRefusal> {
        match host {
            Host::Ipv4(address) => self.check(&address.to_string(), (*address).into()),
            Host::Ipv6(address) => self.check(&address.to_string(), (*address).into()),
            Host::Domain(name) if is_localhost(name.as_ref()) => self.check(name.as_ref(), Ipv4Addr::LOCALHOST.into()),
            Host::Domain(_) => Ok(()),
        }
    }

    /// Resolves a name and checks every address. One denied address refuses the name, since a
    /// name that mixes public and private addresses is how a guard is passed on the second try.
    ///
    /// # Errors
    /// When the name has no address, or one that is denied.
    pub async fn resolve(&self, name: &str) -> Result<Arc<[IpAddr]>, EgressRefusal> {
        let place = self.remembered(name);
        // A caller that arrives while a look-up runs waits for it instead of starting another.
        let mut place = place.lock().await;
        if let Some((at, addresses)) = &*place
            && at.elapsed() < self.lookup_lifetime
        {
            return Ok(addresses.clone());
        }
        let addresses: Arc<[IpAddr]> = self.look_up(name).await?.into();
        *place = Some((Instant::now(), addresses.clone()));
        Ok(addresses)
    }

    /// The checked socket addresses of a host (a name or an address) for protocols that connect
    /// by themselves.
    ///
    /// # Errors
    /// When the host is malformed, unknown or denied.
    pub async fn addresses(&self, host: &Host<String>, port: u16) -> Result<Vec<SocketAddr>, EgressRefusal> {
        self.check_host(host)?;
        Ok(match host {
            Host::Ipv4(address) => vec![SocketAddr::from((*address, port))],
            Host::Ipv6(address) => vec![SocketAddr::from((*address, port))],
            Host::Domain(name) => {
                self.resolve(name).await?.iter().map(|address| SocketAddr::from((*address, port))).collect()
            }
        })
    }

    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, EgressRefusal> {
        let unresolved = |reason| EgressRefusal::Unresolved { host: shown(name), reason };
        let addresses = self.resolver.lookup(name).await.map_err(unresolved)?;
        if addresses.is_empty() {
            return Err(unresolved("it has no address".to_owned()));
        }
        addresses.iter().try_for_each(|address| self.check(name, *address))?;
        Ok(addresses)
    }

    fn check(&self, host: &str, address: IpAddr) -> Result<(), EgressRefusal> {
        match denial(address, &self.allow) {
            Some(reason) => Err(EgressRefusal::Denied { host: shown(host), address, reason }),
            None => Ok(()),
        }
    }

    fn remembered(&self, name: &str) -> Remembered {
        let mut lookups = self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = lookups.get(name) {
            return place.clone();
        }
        if lookups.len() >= LOOKUP_CAPACITY {
            lookups.clear();
        }
        lookups.entry(name.to_owned()).or_default().clone()
    }
}

/// Parses a host (no scheme, no port) as a URL's would be, or a bare IPv6 address.
pub(super) fn parse_host(text: &str) -> Result<Host<String>, EgressRefusal> {
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Ok(Host::Ipv6(address));
    }
    Host::parse(text).map_err(|error| EgressRefusal::Malformed { url: shown(text), reason: error.to_string() })
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

/// The text without control characters and not longer than a line, for an error.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The hosts of one provider's requests for one connection: those that the provider declares and the operator granted,
/// both as patterns.
#[derive(Debug, Clone, Copy)]
pub struct HostGrant<'a> {
    /// Names the provider in errors.
    pub provider: &'a str,
    /// The descriptor's patterns.
    pub declared: &'a [String],
    /// The operator's.
    pub granted: &'a [String],
    /// The connection's config, for `{config.field}`.
    pub config: &'a serde_json::Value,
    /// The recipient, for `{to}`.
    pub to: Option<&'a str>,
}

impl HostGrant<'_> {
    /// Whether a host, as a parsed URL names it, may be called.
    ///
    /// # Errors
    /// Returns a fault that names the host and the remedy. A declared host that is not granted may be granted yet; an
    /// undeclared one never is.
    pub fn check(&self, host: &str) -> Result<(), Fault> {
        if !host_granted(self.declared, self.config, self.to, host) {
            let detail = format!(
                "provider `{}` asked for host `{host}`, which its descriptor does not declare: a new version of the provider must declare it",
                self.provider
            );
            return Err(not_sent(FaultKind::EgressRefused, detail));
        }
        if !host_granted(self.granted, self.config, self.to, host) {
            let detail = format!(
                "host `{host}` is not granted to provider `{}`: the operator grants it with `{}`",
                self.provider,
                self.remedy(host)
            );
            return Err(not_sent(FaultKind::HostNotGranted, detail));
        }
        Ok(())
    }

    /// Returns the command that grants a host: it replaces the whole list, so it repeats the present grants, and uses
    /// the descriptor's patterns.
    fn remedy(&self, host: &str) -> String {
        let means = |pattern: &&String| pattern_means(pattern, self.config, self.to, host);
        let needed = self.declared.iter().find(means);
        let kept = self.granted.iter().filter(|pattern| self.declared.contains(pattern));
        let patterns = kept.chain(needed).map(|pattern| format!(" '{pattern}'"));
        format!("angarium provider grant {}{}", self.provider, patterns.collect::<String>())
    }
}

/// Whether one of the patterns means this host: an exact name, `*.example.com` (any name below
/// it), `{config.field}` (the host, or the URL's host, in that field; dots lead into objects),
/// or `{to}` (the host of the recipient's URL).
#[must_use]
pub fn host_granted(patterns: &[String], config: &serde_json::Value, to: Option<&str>, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    patterns.iter().any(|pattern| pattern_means(pattern, config, to, host))
}

fn pattern_means(pattern: &str, config: &serde_json::Value, to: Option<&str>, host: &str) -> bool {
    if pattern == "{to}" {
        return to.is_some_and(|to| names_host(to, host));
    }
    if let Some(path) = pattern.strip_prefix("{config.").and_then(|rest| rest.strip_suffix('}')) {
        let value = path.split('.').try_fold(config, |value, field| value.get(field));
        return value.and_then(serde_json::Value::as_str).is_some_and(|text| names_host(text, host));
    }
    if let Some(parent) = pattern.strip_prefix("*.") {
        let below = host.len().checked_sub(parent.len() + 1).and_then(|at| host.get(at..));
        return below.is_some_and(|end| end.starts_with('.') && end[1..].eq_ignore_ascii_case(parent))
            && host.parse::<IpAddr>().is_err();
    }
    pattern.eq_ignore_ascii_case(host) || names_host(pattern, host)
}

/// Whether a host or a URL, parsed as the client parses it, names this host.
fn names_host(text: &str, host: &str) -> bool {
    let parsed = if text.contains("://") {
        Url::parse(text).ok().and_then(|url| url.host().map(|host| host.to_string()))
    } else {
        let name = text.rsplit_once(':').filter(|(name, port)| !name.contains(':') && port.parse::<u16>().is_ok());
        parse_host(name.map_or(text, |(name, _)| name)).ok().map(|host| host.to_string())
    };
    parsed.is_some_and(|parsed| parsed.strip_suffix('.').unwrap_or(&parsed) == host)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The list of the security page, and more in its spirit.
    const REFUSED: &[&str] = &[
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://0/",
        "http://0.0.0.0/",
        "http://localhost./",
        "http://localhost/",
        "http://LOCALHOST/",
        "http://a.localhost/",
        "http://\u{ff11}\u{ff12}\u{ff17}.\u{ff10}.\u{ff10}.\u{ff11}/",
        "http://127\u{3002}0\u{3002}0\u{3002}1/",
        "http://\u{24db}\u{24de}\u{24d2}\u{24d0}\u{24db}\u{24d7}\u{24de}\u{24e2}\u{24e3}/",
        "http://ok.com%2f@127.0.0.1/",
        "http://ok.com@127.0.0.1/",
        "http://user:password@example.com/",
        "http://127.0.0.1%2f@ok.com/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[::]/",
        "http://[::1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[64:ff9b:1::1]/",
        "http://[2002:a9fe:a9fe::]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
        "http://[2606:4700::5efe:7f00:1]/",
        "http://[fd00::5efe:808:808]/",
        "http://[fd00::200:5efe:808:808]/",
        "http://[2606:4700::300:5efe:a9fe:a9fe]/",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://[fec0::1]/",
        "http://[ff02::1]/",
        "http://[100::1]/",
        "http://[2001:db8::1]/",
        "http://[3fff::1]/",
        "http://[5f00::1]/",
        "http://100.100.100.200/",
        "http://169.254.169.254/latest/meta-data/",
        "http://169.254.170.2/",
        "http://168.63.129.16/",
        "http://192.0.0.192/",
        "http://10.0.0.1/",
        "http://172.31.255.255/",
        "http://192.168.0.1/",
        "http://198.19.0.1/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http:\\\\127.0.0.1\\",
        "http:127.0.0.1",
        "http://\t127.0.0.1/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "unix:/var/run/docker.sock",
        "/relative",
        "",
    ];

    #[test]
    fn the_whole_list_of_the_security_page_is_refused() {
        let egress = Egress::new(Vec::new());
        for url in REFUSED {
            assert!(egress.check_url(url).is_err(), "{url} passed");
        }
    }

    #[test]
    fn public_addresses_pass() {
        let egress = Egress::new(Vec::new());
        for url in [
            "https://1.1.1.1/",
            "https://example.com:8443/a?b",
            "http://[2606:4700:4700::1111]/",
            "http://[64:ff9b::101:101]/",
            "http://[::ffff:1.1.1.1]/",
        ] {
            assert!(egress.check_url(url).is_ok(), "{url} was refused");
        }
    }

    #[test]
    fn every_denied_network_is_denied_to_its_edges() {
        let v4 = DENIED_V4.iter().flat_map(|(net, _)| [net.network(), net.broadcast()]).map(IpAddr::from);
        let v6 = DENIED_V6.iter().flat_map(|(net, _)| [net.network(), net.broadcast()]).map(IpAddr::from);
        for address in v4.chain(v6) {
            assert!(!is_public(address), "{address}");
        }
        for neighbour in ["9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.32.0.0", "223.255.255.255"]
        {
            assert!(is_public(neighbour.parse().unwrap()), "{neighbour}");
        }
    }

    #[test]
    fn the_operator_opens_networks() {
        let egress = Egress::new(vec!["127.0.0.0/8".parse().unwrap()]);
        assert!(egress.check_url("http://127.1/").is_ok());
        assert!(egress.check_url("http://localhost/").is_ok());
        assert!(egress.check_url("http://[::ffff:127.0.0.1]/").is_ok());
        assert!(egress.check_url("http://10.0.0.1/").is_err());
        let message = egress.check_url("http://10.0.0.1/").unwrap_err().to_string();
        assert!(message.contains("egress.allow") && message.contains("10.0.0.1"), "{message}");
    }

    /// Returns every form in `embedded`, under a prefix of 64 bits if the form leaves one open.
    fn every_form(inner: Ipv4Addr, prefix: u64) -> Vec<Ipv6Addr> {
        let (bits, high) = (u128::from(u32::from(inner)), u128::from(prefix) << 64);
        let nat64_48 = 0x0064_ff9b_0001_u128 << 80;
        let forms = [
            0xffff_u128 << 32 | bits,                                          // mapped
            bits,                                                              // compatible
            0xffff_u128 << 48 | bits,                                          // translated (SIIT)
            0x0064_ff9b_u128 << 96 | bits,                                     // NAT64, well-known
            nat64_48 | (bits >> 16) << 64 | (bits & 0xffff) << 40,             // NAT64, local, /48
            nat64_48 | (bits >> 24) << 64 | (bits & 0xff_ffff) << 32,          // NAT64, local, /56
            nat64_48 | bits << 24,                                             // NAT64, local, /64
            nat64_48 | bits,                                                   // NAT64, local, /96
            0x2002_u128 << 112 | bits << 80,                                   // 6to4
            0x2002_u128 << 112 | bits << 80 | 0x5efe_u128 << 32 | 0x0101_0101, // 6to4 with a public ISATAP
            0x2002_0101_0101_u128 << 80 | 0x5efe_u128 << 32 | bits,            // ISATAP under a public 6to4
            0x2001_0000_u128 << 96 | bits << 64 | 0xfefe_fefe,                 // Teredo, server
            0x2001_0000_0101_0101_u128 << 64 | (bits ^ 0xffff_ffff),           // Teredo, client
            high | 0x0000_5efe_u128 << 32 | bits,                              // ISATAP, each of its bits
            high | 0x0200_5efe_u128 << 32 | bits,
            high | 0x0100_5efe_u128 << 32 | bits,
            high | 0x0300_5efe_u128 << 32 | bits,
        ];
        forms.map(Ipv6Addr::from).to_vec()
    }

    const PUBLIC_PREFIXES: [u64; 3] = [0x2606_4700_0000_0000, 0x2a00_1450_4001_0800, 0x2400_cb00_ffff_ffff];
    const PRIVATE_PREFIXES: [u64; 8] = [
        0,
        0xfd00_0000_0000_0000,
        0xfc00_0000_0000_0001,
        0xfe80_0000_0000_0000,
        0xfec0_0000_0000_0000,
        0x2001_0db8_0000_0000,
        0x3fff_0000_0000_0000,
        0x0064_ff9b_0001_0000,
    ];

    fn allowing(networks: &[&str]) -> Vec<IpNet> {
        networks.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn an_embedded_address_is_refused_in_every_form_under_every_prefix() {
        let denied = DENIED_V4.iter().flat_map(|(net, _)| [net.network(), net.broadcast()]);
        for inner in denied {
            for prefix in PUBLIC_PREFIXES.into_iter().chain(PRIVATE_PREFIXES) {
                for form in every_form(inner, prefix) {
                    assert!(!is_public(form.into()), "{form} holds {inner}");
                }
            }
        }
    }

    #[test]
    fn a_prefix_that_is_not_public_is_refused_whatever_is_embedded() {
        for inner in [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::LOCALHOST] {
            for prefix in PRIVATE_PREFIXES {
                for form in every_form(inner, prefix).split_off(13) {
                    assert!(!is_public(form.into()), "{form}");
                }
            }
        }
        for prefix in PUBLIC_PREFIXES {
            let isatap = every_form(Ipv4Addr::new(8, 8, 8, 8), prefix).split_off(13);
            assert!(isatap.iter().all(|form| is_public((*form).into())), "{isatap:?}");
        }
    }

    #[test]
    fn what_the_operator_opens_is_neither_more_nor_less_than_was_said() {
        let refused = |text: &str, networks: &[&str]| denial(text.parse().unwrap(), &allowing(networks)).is_some();
        // A mapped address is the IPv4 address, however it is written.
        assert!(!refused("::ffff:10.0.0.1", &["10.0.0.0/8"]));
        // Any other form leads to a relay, with its own networks behind it.
        for form in ["64:ff9b::10.0.0.1", "2002:a00:1::1", "2606:4700::5efe:10.0.0.1", "fd00::5efe:10.0.0.1"] {
            assert!(refused(form, &["10.0.0.0/8"]), "{form}");
            assert!(refused(form, &["::/0"]), "{form}: the address in it stays closed");
            assert!(!refused(form, &["::/0", "10.0.0.0/8"]), "{form}");
        }
        assert!(!refused("fd00::5efe:8.8.8.8", &["fd00::/8"]), "what is in it is public");
        assert!(refused("fd00::5efe:127.0.0.1", &["fd00::/8"]));
        assert!(refused("fd00::5efe:8.8.8.8", &["8.8.8.8/32"]));
        assert!(!refused("fd12::1", &["fd12::/16"]) && refused("fd13::1", &["fd12::/16"]));
        assert!(!refused("::1", &["::1/128"]) && refused("::1", &["127.0.0.0/8"]) && refused("::", &["::1/128"]));
    }

    struct Names(&'static [&'static str]);

    impl Resolver for Names {
        fn lookup(&self, _: &str) -> NameLookup {
            let found = self.0.iter().map(|text| text.parse().unwrap()).collect();
            Box::pin(async move { Ok(found) })
        }
    }

    #[tokio::test]
    async fn a_name_with_one_denied_address_is_refused() {
        let egress = Egress::with_resolver(Vec::new(), Box::new(Names(&["93.184.216.34", "127.0.0.1"])));
        let refusal = egress.resolve("rebind.example").await.unwrap_err();
        assert!(matches!(refusal, EgressRefusal::Denied { address, .. } if address.is_loopback()));
        let egress = Egress::with_resolver(Vec::new(), Box::new(Names(&["93.184.216.34"])));
        assert_eq!(egress.resolve("fine.example").await.unwrap().len(), 1);
    }

    /// Answers with a public address first and loopback from then on.
    struct Rebinding(std::sync::atomic::AtomicUsize);

    impl Resolver for Rebinding {
        fn lookup(&self, _: &str) -> NameLookup {
            let first = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
            let address = if first { Ipv4Addr::new(93, 184, 216, 34) } else { Ipv4Addr::LOCALHOST };
            Box::pin(async move { Ok(vec![address.into()]) })
        }
    }

    #[tokio::test]
    async fn a_name_that_turns_to_loopback_is_refused() {
        let mut egress = Egress::with_resolver(Vec::new(), Box::new(Rebinding(0.into())));
        egress.lookup_lifetime = Duration::ZERO;
        assert!(egress.resolve("rebind.example").await.is_ok());
        assert!(egress.resolve("rebind.example").await.is_err());
    }

    #[test]
    fn grants_mean_exact_names_wildcards_config_and_recipient() {
        let config = json!({"url": "https://hooks.example.net/x", "host": "smtp.example.net", "deep": {"base": "API.example.net:8443"}, "ip": "127.0.0.1:99"});
        let to = Some("https://receiver.example/in");
        let granted = |pattern: &str, host: &str| host_granted(&[pattern.to_owned()], &config, to, host);
        assert!(granted("api.twilio.com", "api.twilio.com"));
        assert!(granted("API.Twilio.com", "api.twilio.com"));
        assert!(granted("api.twilio.com", "api.twilio.com."));
        assert!(!granted("twilio.com", "api.twilio.com"));
        assert!(granted("*.twilio.com", "api.twilio.com"));
        assert!(granted("*.twilio.com", "a.b.twilio.com"));
        assert!(!granted("*.twilio.com", "twilio.com"));
        assert!(!granted("*.twilio.com", "eviltwilio.com"));
        assert!(!granted("*.0.0.1", "127.0.0.1"));
        assert!(granted("{config.url}", "hooks.example.net"));
        assert!(granted("{config.host}", "smtp.example.net"));
        assert!(granted("{config.deep.base}", "api.example.net"));
        assert!(granted("{config.ip}", "127.0.0.1"));
        assert!(!granted("{config.missing}", "hooks.example.net"));
        assert!(granted("{to}", "receiver.example"));
        assert!(!granted("{to}", "other.example"));
        assert!(!host_granted(&["{to}".to_owned()], &config, None, "receiver.example"));
    }

    #[test]
    fn a_host_needs_declaration_and_grant() {
        let config = json!({});
        let list = |patterns: &[&str]| patterns.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let (declared, granted) = (list(&["a.example.com", "*.example.com"]), list(&["a.example.com"]));
        let grant =
            HostGrant { provider: "fixture", declared: &declared, granted: &granted, config: &config, to: None };
        assert_eq!(grant.check("a.example.com"), Ok(()));
        let refusal = grant.check("b.example.com").unwrap_err();
        assert_eq!(refusal.kind, FaultKind::HostNotGranted);
        let refusal = refusal.detail;
        assert!(
            refusal.ends_with("`angarium provider grant fixture 'a.example.com' '*.example.com'`"),
            "the command repeats what is granted and adds what is declared: {refusal}"
        );
        assert!(grant.check("evil.org").unwrap_err().detail.contains("does not declare"));
    }
}
