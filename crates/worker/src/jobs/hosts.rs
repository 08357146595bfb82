//! Which addresses `umbel.http` may call. Pure.
//!
//! Two questions, asked of every request and every redirect: does the pool's list have this scheme, host and port? And
//! may the address that the name stands for be reached? Names in the list may stand for addresses of the inside only
//! where they are written out; a pattern never reaches inside, whatever a name server says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use super::SettingsError;

/// The hosts that a pool allows.
#[derive(Debug, Clone, Default)]
pub(super) struct Hosts(Vec<Allowed>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Allowed {
    scheme: String,
    /// As URLs have it, possibly with `*`.
    host: String,
    port: u16,
    trust: Trust,
}

/// How a host got into the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trust {
    /// A pattern covers it.
    Pattern,
    /// It is written out.
    Name,
    /// It is written out and is an address.
    Address,
}

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Anywhere on the Internet.
    Public,
    /// This machine, this cluster, this company.
    Inside,
    /// Metadata services and everything else on this link; nothing at all.
    Link,
}

impl Hosts {
    /// Reads `[scheme://]host[:port]`; https and the scheme's port if not given, `*` for any characters of the host.
    pub(super) fn parse(list: &[String]) -> Result<Hosts, SettingsError> {
        let read = |text: &String| {
            Allowed::parse(text).map_err(|reason| SettingsError::Host {
                host: text.clone(),
                reason,
            })
        };
        list.iter().map(read).collect::<Result<_, _>>().map(Hosts)
    }

    /// How the list has the host of this URL; `None` if it has not.
    pub(super) fn trust(&self, url: &Url) -> Option<Trust> {
        let host = canonical(url.host_str()?);
        let port = url.port_or_known_default()?;
        let allowed = self.0.iter().filter(|allowed| {
            allowed.scheme == url.scheme() && allowed.port == port && covers(allowed.host.as_bytes(), host.as_bytes())
        });
        allowed.map(|allowed| allowed.trust).max()
    }
}

impl Trust {
    /// May this address of the host be called?
    pub(super) fn permits(self, address: IpAddr) -> bool {
        match place(address) {
            Place::Public => true,
            Place::Inside => self >= Trust::Name,
            Place::Link => self == Trust::Address,
        }
    }
}

impl Allowed {
    fn parse(text: &str) -> Result<Allowed, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
        let scheme = scheme.to_ascii_lowercase();
        if scheme != "https" && scheme != "http" {
            return Err("its scheme is neither https nor http".to_owned());
        }
        if rest.contains(['/', '?', '#', '@', '\\']) || rest.is_empty() {
            return Err("it is not of the form [scheme://]host[:port]".to_owned());
        }
        // A pattern is no host, so its stars are letters to the parser.
        const STAR: &str = "xn0star0xn";
        let is_pattern = rest.contains('*');
        let url = Url::parse(&format!("{scheme}://{}/", rest.replace('*', STAR))).map_err(|err| err.to_string())?;
        let (host, trust) = match url.host() {
            Some(Host::Domain(name)) if is_pattern => (canonical(name).replace(STAR, "*"), Trust::Pattern),
            Some(Host::Domain(name)) => (canonical(name).to_owned(), Trust::Name),
            Some(host @ (Host::Ipv4(_) | Host::Ipv6(_))) => (host.to_string(), Trust::Address),
            None => return Err("it has no host".to_owned()),
        };
        let port = url.port_or_known_default().ok_or("it has no port")?;
        Ok(Allowed {
            scheme,
            host,
            port,
            trust,
        })
    }
}

/// A name without the dot that says that it is complete.
fn canonical(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// Does the pattern cover the whole name? Takes steps in proportion to the product of their lengths, at most.
fn covers(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut of, mut again) = (0, 0, None);
    while of < name.len() {
        if pattern.get(at) == Some(&b'*') {
            again = Some((at, of));
            at += 1;
        } else if pattern.get(at) == Some(&name[of]) {
            (at, of) = (at + 1, of + 1);
        } else if let Some((star, from)) = again {
            again = Some((star, from + 1));
            (at, of) = (star + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

fn place(address: IpAddr) -> Place {
    match address {
        IpAddr::V4(address) => place_v4(address),
        IpAddr::V6(address) => place_v6(address),
    }
}

fn place_v4(address: Ipv4Addr) -> Place {
    let [a, b, c, d] = address.octets();
    match (a, b, c, d) {
        // "This network", link-local, multicast, reserved, broadcast.
        (0 | 224..=255, ..) | (169, 254, ..)
        // Metadata and the like that clouds keep elsewhere: Alibaba, Oracle, Azure.
        | (100, 100, 100, 200) | (192, 0, 0, 192) | (168, 63, 129, 16) => Place::Link,
        (10 | 127, ..) | (172, 16..=31, ..) | (192, 168, ..)
        // Shared by carriers, protocol assignments, documentation, benchmarks, old relays.
        | (100, 64..=127, ..)
        | (192, 0, 0 | 2, _)
        | (192, 88, 99, _)
        | (198, 18..=19, ..)
        | (198, 51, 100, _)
        | (203, 0, 113, _) => Place::Inside,
        _ => Place::Public,
    }
}

fn place_v6(address: Ipv6Addr) -> Place {
    let words = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        place_v4(Ipv4Addr::new(a, b, c, d))
    };
    match words {
        // An IPv4 address in other clothes: mapped, compatible, translated; also `::`, as 0.0.0.0.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] if !address.is_loopback() => {
            embedded(high, low)
        }
        // 6to4, through a relay.
        [0x2002, high, low, ..] => match embedded(high, low) {
            Place::Public => Place::Inside,
            other => other,
        },
        // AWS keeps its metadata in a network of its own; link-local; multicast.
        [0xfd00, 0x0ec2, ..] | [0xfe80..=0xfebf | 0xff00..=0xffff, ..] => Place::Link,
        // All that is assigned to the Internet, but for Teredo and other protocols, and documentation.
        [0x2001, 0x200..=0xdb7 | 0xdb9..=0xffff, ..]
        | [0x2000 | 0x2003..=0x3ffe, ..]
        | [0x3fff, 0x1000..=0xffff, ..] => Place::Public,
        _ => Place::Inside, // `::1` is among them.
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn hosts(list: &[&str]) -> Hosts {
        let list: Vec<String> = list.iter().map(|&host| host.to_owned()).collect();
        Hosts::parse(&list).unwrap()
    }

    #[test]
    fn a_host_is_found_by_scheme_name_and_port() {
        let hosts = hosts(&[
            "api.example.com",
            "*.example.org:8443",
            "http://hooks.shop.svc:8080",
            "http://10.1.2.3",
            "[fd00::1]:8443",
            "API.Example.net.",
            "eu-*.example.com",
            "bücher.example",
        ]);
        for (url, trust) in [
            ("https://api.example.com/x?y", Some(Trust::Name)),
            ("https://API.example.COM:443", Some(Trust::Name)),
            ("https://api.example.com./", Some(Trust::Name)),
            ("https://api.example.com:444", None),
            ("http://api.example.com", None),
            ("http://api.example.com:443", None),
            ("https://a.example.org:8443", Some(Trust::Pattern)),
            ("https://a.b.example.org:8443", Some(Trust::Pattern)),
            ("https://example.org:8443", None),
            ("https://evilexample.org:8443", None),
            ("https://a.example.org.evil.com:8443", None),
            ("http://hooks.shop.svc:8080", Some(Trust::Name)),
            ("http://hooks.shop.svc", None),
            ("http://10.1.2.3", Some(Trust::Address)),
            ("http://0x0a.1.515", Some(Trust::Address)),
            ("http://167838211", Some(Trust::Address)),
            ("http://10.1.2.4", None),
            ("https://[fd00:0:0::1]:8443", Some(Trust::Address)),
            ("https://api.example.net", Some(Trust::Name)),
            ("https://eu-1.example.com", Some(Trust::Pattern)),
            ("https://xn--bcher-kva.example", Some(Trust::Name)),
            ("ftp://api.example.com", None),
        ] {
            assert_eq!(hosts.trust(&Url::parse(url).unwrap()), trust, "{url}");
        }
    }

    #[test]
    fn what_is_written_out_counts_more_than_a_pattern() {
        let hosts = hosts(&["*", "db.internal"]);
        let trust = |url: &str| hosts.trust(&Url::parse(url).unwrap());
        assert_eq!(trust("https://db.internal"), Some(Trust::Name));
        assert_eq!(trust("https://other.internal"), Some(Trust::Pattern));
        assert_eq!(trust("https://127.0.0.1"), Some(Trust::Pattern));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            "https://",
            "ftp://a.example",
            "a.example/path",
            "user@a.example",
            "a.example:99999",
            "a b.example",
            "a.example?x",
            "http://a.example#x",
            "[::1",
        ] {
            assert!(Hosts::parse(&[text.to_owned()]).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_of_the_inside_need_their_names_in_the_list() {
        let public = [
            "8.8.8.8",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "2606:4700::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ];
        let inside = [
            "10.0.0.1",
            "127.0.0.1",
            "127.8.8.8",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "198.18.0.1",
            "192.0.2.1",
            "::1",
            "fd12::1",
            "fec0::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "2002:808:808::1",
            "2001::1",
            "64:ff9b:1::1",
        ];
        let link = [
            "169.254.169.254",
            "169.254.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "2002:a9fe:a9fe::1",
            "64:ff9b::a9fe:a9fe",
        ];
        for (addresses, allowed) in [
            (public.as_slice(), [true, true, true]),
            (inside.as_slice(), [false, true, true]),
            (link.as_slice(), [false, false, true]),
        ] {
            for text in addresses {
                let address: IpAddr = text.parse().unwrap();
                let permitted = [Trust::Pattern, Trust::Name, Trust::Address].map(|trust| trust.permits(address));
                assert_eq!(permitted, allowed, "{text}");
            }
        }
    }

    #[test]
    fn patterns_cover_whole_names() {
        for (pattern, name, is_covered) in [
            ("*", "", true),
            ("*", "a.b", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*.a", ".a", true),
            ("*ab", "aab", true),
            ("a", "ab", false),
            ("ab", "a", false),
        ] {
            assert_eq!(
                covers(pattern.as_bytes(), name.as_bytes()),
                is_covered,
                "{pattern} {name}"
            );
        }
    }
}
