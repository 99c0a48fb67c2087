//! A URL that the guard lets pass leads to no address that it denies, however it is written.
#![no_main]

use std::net::IpAddr;

use angarium_transport::egress::{Egress, is_public};
use libfuzzer_sys::fuzz_target;
use url::{Host, Url};

fuzz_target!(|text: &str| {
    let Ok(url) = Egress::new(Vec::new()).check_url(text) else { return };
    assert!(["http", "https"].contains(&url.scheme()), "{url}");
    assert!(url.username().is_empty() && url.password().is_none(), "{url}");
    let address: Option<IpAddr> = match url.host() {
        Some(Host::Ipv4(address)) => Some(address.into()),
        Some(Host::Ipv6(address)) => Some(address.into()),
        // A name must not have a form that a resolver would still read as an address.
        Some(Host::Domain(name)) => name.trim_end_matches('.').parse().ok(),
        None => panic!("{url} has no host"),
    };
    assert!(address.is_none_or(is_public), "{text:?} leads to {address:?}");
    // The client reads the text that it is given once more.
    assert_eq!(
        Url::parse(url.as_str()).map(|again| again.host().map(|host| host.to_owned())),
        Ok(url.host().map(|host| host.to_owned()))
    );
});
