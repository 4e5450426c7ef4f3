//! What a node is told at its start, from flags or a TOML file.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use base::{ClusterVersion, Millis, VersionRange, limits};
use toml::de::{DeArray, DeTable, DeValue};
use wire::JoinToken;

/// Default port of the Kafka listener.
pub const KAFKA_PORT: u16 = 9092;
/// Default port of the API.
pub const API_PORT: u16 = 7400;
/// Default port for peers (UDP).
pub const PEER_PORT: u16 = 7401;

/// Everything that one node is told at its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Holds all that the node keeps. Two nodes never share one.
    pub data_dir: PathBuf,
    /// A DNS label, and no number. If another member is called so, the cluster calls this one otherwise ([`crate::Node::name`]).
    pub name: String,
    /// TCP, for Kafka clients.
    pub kafka_listen: SocketAddr,
    /// TCP, for the API.
    pub api_listen: SocketAddr,
    /// UDP, for peers.
    pub peer_listen: SocketAddr,
    /// `host:port` that Kafka clients are told to connect to; by default `kafka_listen`, which then is one address.
    pub kafka_advertise: Option<String>,
    /// `host:port` under which the API is shown, and may be called on its own host (others are refused); by default
    /// `api_listen`, which then is one address.
    pub api_advertise: Option<String>,
    /// Failure domains and whatever else placement should know, such as `zone=a`.
    pub labels: BTreeMap<String, String>,
    /// With which to enter a cluster. Ignored by a node that is a member already.
    pub join: Option<JoinToken>,
    /// Where other members may be, besides where the cluster's table has them: for nodes that all moved at once, none of
    /// which finds another by the table.
    pub peers: Vec<SocketAddr>,
    /// URL of an iroh relay, by which this node can be reached too, and which lets it reach others by theirs.
    pub relay: Option<String>,
    /// Kernel of the built-in image, instead of one that is fetched on demand.
    pub kernel: Option<PathBuf>,
    /// While this node leads the cluster: how long another one is silent until its replicas are made anew elsewhere;
    /// [`base::limits::NODE_LOST_AFTER`] if not given.
    pub node_lost_after: Option<Millis>,
    /// The node acts as one that can no cluster version above this, so that a new one is not activated yet; the binary's
    /// own if not given.
    pub cluster_version_max: Option<ClusterVersion>,
    /// Between heartbeats of a leader; the same on all members.
    pub heartbeat_interval: Millis,
    /// Least election timeout; the same on all members.
    pub election_timeout: Millis,
}

/// A configuration that cannot be used: what is wrong, where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {reason}", path.display())]
    Read { path: PathBuf, reason: String },
    #[error("{}:{line}: {problem}", path.display())]
    Line { path: PathBuf, line: usize, problem: String },
}

impl Config {
    /// A node that listens on loopback, on the default ports, under this host's name.
    #[must_use]
    pub fn embedded(data_dir: impl Into<PathBuf>) -> Config {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Config {
            data_dir: data_dir.into(),
            name: host_label(rustix::system::uname().nodename().to_str().unwrap_or("")),
            kafka_listen: loopback(KAFKA_PORT),
            api_listen: loopback(API_PORT),
            peer_listen: loopback(PEER_PORT),
            kafka_advertise: None,
            api_advertise: None,
            labels: BTreeMap::new(),
            join: None,
            peers: Vec::new(),
            relay: None,
            kernel: None,
            node_lost_after: None,
            cluster_version_max: None,
            heartbeat_interval: limits::HEARTBEAT_INTERVAL,
            election_timeout: limits::ELECTION_TIMEOUT_MIN,
        }
    }

    /// Reads a configuration file. Keys that it does not set keep the defaults of [`Config::embedded`]; relative paths
    /// are relative to the file's directory.
    ///
    /// # Errors
    /// Names the file, the line, and the nearest key for one that does not exist.
    pub fn from_file(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: path.to_path_buf(), reason: error.to_string() })?;
        Config::parse(&text, path)
    }

    /// Parses the text of a configuration file that stands at `path`.
    ///
    /// # Errors
    /// As [`Config::from_file`].
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let at = |offset: usize, problem: String| ConfigError::Line {
            path: path.to_path_buf(),
            line: 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count(),
            problem,
        };
        let table = DeTable::parse(text)
            .map_err(|error| at(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
        let dir = path.parent().unwrap_or(Path::new(""));
        let mut config = Config::embedded(dir.join("muster-data"));
        for (key, value) in table.get_ref() {
            let name: &str = key.get_ref();
            if !KEYS.contains(&name) {
                return Err(at(key.span().start, unknown_key(name)));
            }
            let set = match (name, value.get_ref()) {
                ("labels", DeValue::Table(labels)) => config.set_labels(labels),
                ("labels", _) => Err("labels must be a table, such as labels = { zone = \"a\" }".into()),
                ("peers", DeValue::Array(peers)) => config.set_peers(peers),
                ("peers", _) => Err(PEERS_EXPECTED.into()),
                (_, DeValue::String(value)) => config.set(name, value, dir),
                _ => Err(format!("{name} must be a string, such as {}", example(name))),
            };
            set.map_err(|problem| at(value.span().start, problem))?;
        }
        Ok(config)
    }

    fn set_labels(&mut self, labels: &DeTable<'_>) -> Result<(), String> {
        for (key, value) in labels {
            let DeValue::String(value) = value.get_ref() else {
                return Err(format!("label {} must be a string, such as \"a\"", key.get_ref()));
            };
            self.labels.insert(key.get_ref().to_string(), value.to_string());
        }
        Ok(())
    }

    fn set_peers(&mut self, peers: &DeArray<'_>) -> Result<(), String> {
        for peer in peers {
            let DeValue::String(peer) = peer.get_ref() else { return Err(PEERS_EXPECTED.into()) };
            self.peers.push(peer.parse().map_err(|_| PEERS_EXPECTED.to_owned())?);
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str, dir: &Path) -> Result<(), String> {
        let address = || {
            value
                .parse::<SocketAddr>()
                .map_err(|_| format!("{key} must be an address and port, such as {}", example(key)))
        };
        match key {
            "data_dir" => self.data_dir = dir.join(value),
            "kernel" => self.kernel = Some(dir.join(value)),
            "name" => self.name = valid_name(value)?.to_owned(),
            "kafka_listen" => self.kafka_listen = address()?,
            "api_listen" => self.api_listen = address()?,
            "peer_listen" => self.peer_listen = address()?,
            "kafka_advertise" => self.kafka_advertise = Some(valid_advertise(key, value)?.to_owned()),
            "api_advertise" => self.api_advertise = Some(valid_advertise(key, value)?.to_owned()),
            "relay_url" => self.relay = Some(valid_relay(key, value)?.to_owned()),
            "node_lost_after" => self.node_lost_after = Some(parse_duration(key, value)?),
            "cluster_version_max" => self.cluster_version_max = Some(parse_cluster_version(key, value)?),
            "heartbeat_interval_ms" => self.heartbeat_interval = parse_heartbeat_interval(key, value)?,
            "election_timeout_ms" => self.election_timeout = parse_election_timeout(key, value)?,
            "join" => self.join = Some(value.parse().map_err(|error| format!("join: {error}"))?),
            _ => return Err(unknown_key(key)),
        }
        Ok(())
    }

    /// Whether others can be told where to reach what listens here: an address such as 0.0.0.0 is every address of this
    /// host, and none to connect to.
    ///
    /// # Errors
    /// Names the flag that says what to tell them.
    pub(crate) fn check_reach(&self) -> Result<(), String> {
        let example = |port| SocketAddr::from((Ipv4Addr::new(192, 168, 1, 10), port));
        let peer = self.peer_listen;
        if peer.ip().is_unspecified() {
            return Err(format!(
                "--peer-listen {peer}: name the one address at which other nodes reach this host, such as {}",
                example(peer.port())
            ));
        }
        for (what, clients, listen, advertise) in [
            ("kafka", "Kafka clients", self.kafka_listen, &self.kafka_advertise),
            ("api", "users of the API", self.api_listen, &self.api_advertise),
        ] {
            if listen.ip().is_unspecified() && advertise.is_none() {
                return Err(format!(
                    "--{what}-listen {listen} is every address of this host, but {clients} are told one: name it with \
                     --{what}-advertise HOST:PORT, such as --{what}-advertise {}, or listen there alone",
                    example(listen.port())
                ));
            }
        }
        Ok(())
    }

    /// Whether enough heartbeats fit into an election timeout.
    ///
    /// # Errors
    /// Says how long the election timeout must be.
    pub(crate) fn check_pace(&self) -> Result<(), String> {
        let (interval, timeout) = (self.heartbeat_interval.0, self.election_timeout.0);
        let least = interval * limits::HEARTBEATS_PER_ELECTION_MIN;
        if timeout >= least {
            return Ok(());
        }
        Err(format!(
            "an election timeout of {timeout} ms is too short for heartbeats every {interval} ms: it must be {least} ms at \
             least"
        ))
    }

    /// The cluster versions that the node can, as it is told.
    #[must_use]
    pub fn versions(&self) -> VersionRange {
        let binary = VersionRange::BINARY;
        self.cluster_version_max.and_then(|max| binary.up_to(max)).unwrap_or(binary)
    }

    /// Whether the data directory holds a member of a cluster already.
    #[must_use]
    pub fn is_member(data_dir: &Path) -> bool {
        data_dir.join("cluster").exists()
    }
}

const KEYS: &[&str] = &[
    "data_dir",
    "name",
    "kafka_listen",
    "api_listen",
    "peer_listen",
    "kafka_advertise",
    "api_advertise",
    "labels",
    "join",
    "peers",
    "relay_url",
    "kernel",
    "node_lost_after",
    "cluster_version_max",
    "heartbeat_interval_ms",
    "election_timeout_ms",
];

const PEERS_EXPECTED: &str = "peers must be a list of addresses and ports, such as peers = [\"10.0.0.2:7401\"]";

fn unknown_key(name: &str) -> String {
    match ops::nearest(name, KEYS.iter().copied()) {
        Some(near) => format!("unknown key \"{name}\": did you mean \"{near}\"?"),
        None => format!("unknown key \"{name}\": the keys are {}", KEYS.join(", ")),
    }
}

fn example(key: &str) -> &'static str {
    match key {
        "data_dir" => "\"/var/lib/muster\"",
        "name" => "\"node1\"",
        "kafka_listen" => "\"10.0.0.1:9092\"",
        "api_listen" => "\"127.0.0.1:7400\"",
        "peer_listen" => "\"10.0.0.1:7401\"",
        "kafka_advertise" => "\"kafka.example.org:9092\"",
        "api_advertise" => "\"node1.example.org:7400\"",
        "relay_url" => "\"https://relay.example.org\"",
        "kernel" => "\"/boot/vmlinuz\"",
        "node_lost_after" => "\"10m\"",
        "cluster_version_max" => "\"1\"",
        "heartbeat_interval_ms" => "\"150\"",
        "election_timeout_ms" => "\"1000\"",
        _ => "\"muster1_...\"",
    }
}

/// A cluster version that this binary can be held at.
///
/// # Errors
/// With a sentence that says what is wrong.
pub fn parse_cluster_version(what: &str, text: &str) -> Result<ClusterVersion, String> {
    let binary = VersionRange::BINARY;
    let version = text.parse().ok().filter(|version| binary.contains(*version));
    version.ok_or_else(|| format!("{what} {text:?}: this muster can cluster versions {binary}"))
}

/// The time between heartbeats, in milliseconds.
///
/// # Errors
/// With a sentence that says what is wrong.
pub fn parse_heartbeat_interval(what: &str, text: &str) -> Result<Millis, String> {
    parse_ticks(what, text, limits::TICK, limits::HEARTBEAT_INTERVAL_MAX)
}

/// The least election timeout, in milliseconds.
///
/// # Errors
/// With a sentence that says what is wrong.
pub fn parse_election_timeout(what: &str, text: &str) -> Result<Millis, String> {
    parse_ticks(what, text, limits::ELECTION_TIMEOUT_MIN, limits::ELECTION_TIMEOUT_TOLD_MAX)
}

fn parse_ticks(what: &str, text: &str, least: Millis, most: Millis) -> Result<Millis, String> {
    let tick = limits::TICK.0;
    let fits = |ms: &u64| ms.is_multiple_of(tick) && (least.0..=most.0).contains(ms);
    let ms = text.parse::<u64>().ok().filter(fits);
    ms.map(Millis).ok_or_else(|| {
        let (least, most) = (least.0, most.0);
        format!("{what} must be a number of milliseconds, {least} to {most}, and a multiple of {tick}, is {text:?}")
    })
}

/// A node's name: a DNS label (RFC 1123), but no number, which would pass for a node's id.
///
/// # Errors
/// With a sentence that says what is wrong.
pub fn valid_name(name: &str) -> Result<&str, String> {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = (1..=63).contains(&name.len()) && name.chars().all(inside);
    if fits && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "{name:?} is a number, which would pass for a node's id: choose a name such as \"node{name}\""
        ));
    }
    if fits && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(name);
    }
    Err(format!("{name:?} is not a node name: 1 to 63 lower-case letters, digits and \"-\" inside, such as \"node1\""))
}

/// A span of time as written on a command line: a number with `s`, `m` or `h`.
///
/// # Errors
/// With a sentence that says what is wrong.
pub fn parse_duration(key: &str, text: &str) -> Result<Millis, String> {
    let split = text.len() - text.chars().last().map_or(0, char::len_utf8);
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds * 1_000)) {
        Some(ms) if ms > 0 => Ok(Millis(ms)),
        _ => Err(format!("{key} must be a number of seconds, minutes or hours, such as \"30s\", \"10m\" or \"2h\"")),
    }
}

/// A label as written on a command line: `KEY=VALUE`.
///
/// # Errors
/// With a sentence that says what is wrong.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label: write KEY=VALUE, such as zone=a")),
    }
}

/// What others are told to connect to: `HOST:PORT`. `key` is the flag or the key of a file that it was given with.
///
/// # Errors
/// With a sentence that says what is wrong.
pub fn valid_advertise<'a>(key: &str, value: &'a str) -> Result<&'a str, String> {
    let (host, port) = value.rsplit_once(':').unwrap_or_default();
    let unspecified = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
    if unspecified {
        return Err(format!("{key} must be an address to connect to, which {host} is not"));
    }
    if host.is_empty() || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        let like = example(&key.trim_start_matches('-').replace('-', "_"));
        return Err(format!("{key} must be host:port, such as {like}"));
    }
    Ok(value)
}

/// The URL of a relay. `key` is the flag or the key of a file that it was given with.
///
/// # Errors
/// With a sentence that says what is wrong.
pub fn valid_relay<'a>(key: &str, value: &'a str) -> Result<&'a str, String> {
    transport::check_relay(value).map(|()| value).map_err(|error| format!("{key}: {error}"))
}

/// The first label of a host name as a node name; `node` if nothing usable is left, and before a number.
fn host_label(host: &str) -> String {
    let first = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let clean: String = first.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let clean = clean.trim_matches('-');
    let number = clean.bytes().all(|byte| byte.is_ascii_digit());
    let name: String = if number { ["node", clean].concat() } else { clean.to_owned() };
    name.chars().take(63).collect::<String>().trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/muster/node.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_file_is_read() {
        let config = parse(
            "# a node\nname = \"node2\"\ndata_dir = \"data\"\nkernel = \"/boot/vmlinuz\"\nkafka_listen = \"10.0.0.2:9092\"\n\
             kafka_advertise = \"kafka.example.org:9092\"\npeers = [\"10.0.0.1:7401\", \"[::1]:7401\"]\n[labels]\nzone = \"a\"\n",
        )
        .unwrap();
        assert_eq!(config.name, "node2");
        assert_eq!(config.data_dir, Path::new("/etc/muster/data"));
        assert_eq!(config.kernel.as_deref(), Some(Path::new("/boot/vmlinuz")));
        assert_eq!(config.kafka_listen.to_string(), "10.0.0.2:9092");
        assert_eq!(config.kafka_advertise.as_deref(), Some("kafka.example.org:9092"));
        assert_eq!(config.api_listen.to_string(), "127.0.0.1:7400");
        assert_eq!(config.peers, ["10.0.0.1:7401".parse().unwrap(), "[::1]:7401".parse().unwrap()]);
        assert_eq!(config.labels.get("zone").map(String::as_str), Some("a"));
    }

    #[test]
    fn mistakes_name_the_line_and_what_to_write() {
        for (text, expect) in [
            ("nam = \"x\"", "/etc/muster/node.toml:1: unknown key \"nam\": did you mean \"name\"?"),
            (
                "\nkafka-listen = \"x\"",
                "/etc/muster/node.toml:2: unknown key \"kafka-listen\": did you mean \"kafka_listen\"?",
            ),
            ("name = 7", "/etc/muster/node.toml:1: name must be a string, such as \"node1\""),
            (
                "\n\napi_listen = \"7400\"",
                "/etc/muster/node.toml:3: api_listen must be an address and port, such as \"127.0.0.1:7400\"",
            ),
            (
                "join = \"hello\"",
                "/etc/muster/node.toml:1: join: not a muster join token: it must start with \"muster1_\"; make one with `muster token create`",
            ),
            ("peers = [\"n1\"]", &format!("/etc/muster/node.toml:1: {PEERS_EXPECTED}")),
            ("peers = \"10.0.0.1:7401\"", &format!("/etc/muster/node.toml:1: {PEERS_EXPECTED}")),
            ("[labels]\nzone = 1", "/etc/muster/node.toml:1: label zone must be a string, such as \"a\""),
            (
                "kafka_advertise = \"host\"",
                "/etc/muster/node.toml:1: kafka_advertise must be host:port, such as \"kafka.example.org:9092\"",
            ),
        ] {
            assert_eq!(parse(text), Err(expect.to_owned()), "{text:?}");
        }
        for broken in ["name = ", "= 1", "name = \"a\"\nname = \"b\"", "\u{0}", "[labels"] {
            let error = parse(broken).unwrap_err();
            assert!(error.starts_with("/etc/muster/node.toml:"), "{broken:?}: {error}");
        }
        assert!(parse("colour = \"x\"").unwrap_err().contains("the keys are data_dir, name"));
    }

    #[test]
    fn heartbeats_and_elections_keep_the_pace_that_the_rest_relies_on() {
        let told = |text: &str| parse(text).and_then(|config| config.check_pace().map(|()| config));
        let config = told("heartbeat_interval_ms = \"500\"\nelection_timeout_ms = \"2000\"").unwrap();
        assert_eq!((config.heartbeat_interval, config.election_timeout), (Millis(500), Millis(2_000)));
        let config = told("").unwrap();
        let defaults = (limits::HEARTBEAT_INTERVAL, limits::ELECTION_TIMEOUT_MIN);
        assert_eq!((config.heartbeat_interval, config.election_timeout), defaults);
        let refused = told("heartbeat_interval_ms = \"300\"").unwrap_err();
        assert!(refused.ends_with("it must be 1200 ms at least"), "{refused}");
        for (key, values) in
            [("heartbeat_interval_ms", ["0", "75", "550", "1s"]), ("election_timeout_ms", ["950", "1025", "5050", ""])]
        {
            for value in values {
                let refused = told(&format!("{key} = \"{value}\"")).unwrap_err();
                assert!(refused.contains("and a multiple of 50"), "{refused}");
            }
        }
    }

    #[test]
    fn what_nobody_can_connect_to_is_told_to_nobody() {
        let told = |text: &str| {
            parse(text).and_then(|config| config.check_reach()).map_err(|error| error.replace("/etc/muster/node", ""))
        };
        for every in ["0.0.0.0", "[::]"] {
            let refused = told(&format!("kafka_listen = \"{every}:9092\"")).unwrap_err();
            let says = format!(
                "--kafka-listen {every}:9092 is every address of this host, but Kafka clients are told one: name it with \
                 --kafka-advertise HOST:PORT, such as --kafka-advertise 192.168.1.10:9092, or listen there alone"
            );
            assert_eq!(refused, says);
            let refused = told(&format!("api_listen = \"{every}:7400\"")).unwrap_err();
            assert!(refused.contains("--api-advertise HOST:PORT"), "{refused}");
            let refused = told(&format!("peer_listen = \"{every}:7401\"")).unwrap_err();
            assert!(refused.contains("such as 192.168.1.10:7401"), "{refused}");
            let refused = told(&format!("kafka_advertise = \"{every}:9092\"")).unwrap_err();
            assert!(refused.contains(&format!("which {every} is not")), "{refused}");
            let advertised = format!("kafka_listen = \"{every}:9092\"\nkafka_advertise = \"k.example.org:9092\"");
            assert_eq!(told(&advertised), Ok(()));
        }
        assert_eq!(told("kafka_listen = \"10.0.0.1:9092\""), Ok(()));
        let flag = valid_advertise("--kafka-advertise", "host").unwrap_err();
        assert_eq!(flag, "--kafka-advertise must be host:port, such as \"kafka.example.org:9092\"");
    }

    #[test]
    fn a_relay_is_named_by_scheme_host_and_port_alone_and_there_is_none_unless_it_is() {
        let told = |url: &str| parse(&format!("relay_url = \"{url}\"")).map(|config| config.relay);
        for url in
            ["https://relay.example.org", "https://relay.example.org:8443/", "http://10.0.0.9:3340", "http://[::1]"]
        {
            assert_eq!(told(url), Ok(Some(url.to_owned())));
        }
        assert_eq!(parse("").unwrap().relay, None);
        for (url, expect) in [
            ("relay.example.org", "relative URL without a base"),
            ("", "relative URL without a base"),
            ("https://", "empty host"),
            ("relay.example.org:443", "it begins with relay.example.org: and not with https: or http:"),
            ("wss://relay.example.org", "it begins with wss: and not with https: or http:"),
            ("https://relay.example.org/relay", "leave out everything but scheme, host and port"),
            ("https://relay.example.org/?token=a", "leave out everything but scheme, host and port"),
            ("https://me:secret@relay.example.org", "leave out everything but scheme, host and port"),
        ] {
            let refused = told(url).unwrap_err();
            let begins = format!(
                "/etc/muster/node.toml:1: relay_url: relay \"{url}\" is not the URL of a relay, such as \
                 https://relay.example.org: "
            );
            assert!(refused.starts_with(&begins) && refused.ends_with(expect), "{refused}");
        }
        assert!(valid_relay("--relay-url", "x").unwrap_err().starts_with("--relay-url: relay \"x\" is not"));
    }

    #[test]
    fn host_names_become_labels() {
        let hosts =
            [("Box_7.example.org", "box-7"), ("", "node"), ("--", "node"), ("a", "a"), ("42.example.org", "node42")];
        for (host, expect) in hosts {
            assert_eq!(host_label(host), expect);
            assert_eq!(valid_name(expect), Ok(expect));
        }
        for long in ["a".repeat(99), "7".repeat(99), format!("{}-b", "a".repeat(62))] {
            let label = host_label(&long);
            assert_eq!(valid_name(&label), Ok(label.as_str()), "{long}");
        }
        assert!(valid_name("42").unwrap_err().contains("would pass for a node's id"));
    }
}
