//! The command line: what starts processes is written here, everything else is drawn from the registry.

use clap::builder::PossibleValuesParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use operations::Ports;
use ops::Registry;

/// Where the API is, if nothing else is said.
pub(crate) const API_DEFAULT: &str = "127.0.0.1:7400";
/// Names a node's API, if `--api` does not.
pub(crate) const API_ENV: &str = "MUSTER_API";

/// The whole command line.
pub(crate) fn command(registry: &Registry<Ports>) -> Command {
    let mut remote = doors::cli::commands(registry);
    let node = match remote.iter().position(|command| command.get_name() == "node") {
        Some(at) => remote.remove(at),
        None => Command::new("node"),
    };
    Command::new("muster")
        .version(env!("CARGO_PKG_VERSION"))
        .about("One binary that turns a handful of Linux machines into a cluster: microVMs and a Kafka-compatible log")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("api")
                .long("api")
                .global(true)
                .value_name("ADDR")
                .help(format!("The node to ask, host:port [default: ${API_ENV}, or {API_DEFAULT}]")),
        )
        .arg(
            Arg::new("output")
                .long("output")
                .short('o')
                .global(true)
                .value_name("FORMAT")
                .value_parser(PossibleValuesParser::new(["human", "json"]))
                .default_value("human")
                .hide_possible_values(false)
                .help("Tables for people, or JSON for programs"),
        )
        .arg(
            Arg::new("deadline")
                .long("deadline")
                .global(true)
                .value_name("TIME")
                .value_parser(|text: &str| node::parse_duration("it", text))
                .help("How long the node may try before it gives up, such as 5s [default: 30s for most calls]"),
        )
        .subcommand(node_flags(up()))
        .subcommand(node_flags(join()))
        .subcommand(dev())
        .subcommand(demo())
        .subcommand(node_command(node))
        .subcommand(recover())
        .subcommand(Command::new("version").about("Print the version"))
        .subcommands(remote)
}

/// Parses a command line.
///
/// # Errors
/// Help, version and misuse, as clap tells of them; also a verb that is only one letter away is suggested, and a deadline for
/// what asks no node is refused.
pub(crate) fn parse(command: Command, words: Vec<std::ffi::OsString>) -> Result<ArgMatches, clap::Error> {
    let mut parser = command.clone();
    let matches = parser.try_get_matches_from_mut(&words).map_err(|mut error| {
        // clap's own measure misses short words: "vn" for "vm".
        let suggested = error.get(ContextKind::SuggestedSubcommand).is_some();
        let Some(ContextValue::String(wrong)) = error.get(ContextKind::InvalidSubcommand) else { return error };
        let before = words.iter().skip(1).take_while(|word| *word != wrong.as_str()).filter_map(|word| word.to_str());
        let group = before.fold(&command, |at, word| at.find_subcommand(word).unwrap_or(at));
        let names = group.get_subcommands().flat_map(|verb| verb.get_all_aliases().chain([verb.get_name()]));
        let near = ops::nearest(wrong, names.collect::<Vec<_>>()).map(str::to_owned);
        if let (false, Some(near)) = (suggested, near) {
            error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![near]));
        }
        error
    })?;
    if let Some(verb) = asks_nobody(&matches).filter(|_| matches.contains_id("deadline")) {
        let problem = format!("--deadline is for what a node is asked: `muster {verb}` has none");
        return Err(parser.error(ErrorKind::ArgumentConflict, problem));
    }
    Ok(matches)
}

/// The verb that was said, if it is carried out here and not by the node that the command line names.
fn asks_nobody(matches: &ArgMatches) -> Option<&str> {
    match matches.subcommand()? {
        ("node", args) if args.subcommand().is_none() => Some("node --config"),
        (verb @ ("up" | "join" | "dev" | "demo" | "recover" | "version"), _) => Some(verb),
        _ => None,
    }
}

fn up() -> Command {
    Command::new("up").about("Start one node here, with everything in it").after_help(
        "Without a cluster in the data directory it forms a new one; otherwise it goes on with that one.\n\n\
         Examples:\n  muster up                                   data in ./muster-data, the default ports\n  \
         muster up --kafka-listen 127.0.0.1:19092    another port for Kafka clients\n  \
         muster up --peer-listen 10.9.0.1:7401 --peer 10.9.0.2:7401    all nodes moved: where another is now",
    )
}

fn join() -> Command {
    Command::new("join")
        .about("Start a node here that joins a cluster")
        .arg(
            Arg::new("token")
                .required(true)
                .value_name("TOKEN")
                .help("As `muster token create` printed it; `-` reads it from standard input"),
        )
        .after_help(
            "Peers must be able to reach this node: on another host, name an address of it.\n\nExamples:\n  \
             muster join muster1_... --peer-listen 10.0.0.2:7401 --kafka-listen 10.0.0.2:9092",
        )
}

/// `muster node --config FILE` starts a node; `muster node list` is an operation.
fn node_command(operations: Command) -> Command {
    operations
        .about("Start a node from a configuration file; list the nodes")
        .subcommand_required(false)
        .arg_required_else_help(true)
        .args_conflicts_with_subcommands(true)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .required(true)
                .value_parser(value_parser!(std::path::PathBuf))
                .help("TOML; the production start"),
        )
        .arg(parent_arg())
}

fn recover() -> Command {
    let files = value_parser!(std::path::PathBuf);
    Command::new("recover")
        .about("When a majority of the nodes is gone for good: show what a survivor holds, make it the whole cluster")
        .arg(data_dir("").required(true).help("Of the survivor; no process may run on it"))
        .arg(
            Arg::new("others")
                .long("others")
                .value_name("FILE")
                .action(ArgAction::Append)
                .value_parser(files)
                .help("Another survivor's report (--output json), to compare with; may be given several times"),
        )
        .arg(
            Arg::new("inspect")
                .long("inspect")
                .action(ArgAction::SetTrue)
                .conflicts_with("yes")
                .help("Only report; that is what happens without --yes, too"),
        )
        .arg(
            Arg::new("yes")
                .long("yes")
                .action(ArgAction::SetTrue)
                .help("The others are gone for good: this node is the whole cluster from now on. There is no way back"),
        )
        .after_help(
            "Without --yes it changes nothing. With it, what only other nodes have is lost: records and changes that this\n\
             node had not heard of, partitions without a replica here, join tokens. The other nodes are named, and refused\n\
             from then on; wiped, they can join anew. Never do that while a majority can come back.\n\n\
             Recover one survivor only: two are two clusters of the same name, whose nodes refuse each other. Then keep\n\
             one, and wipe the other. Said once more on the same node, --yes changes nothing until others have joined;\n\
             after that it gives those up in turn.\n\n\
             Examples:\n  muster recover --data-dir /var/lib/muster                         what is there, and what would be lost\n  \
             muster recover --data-dir /var/lib/muster -o json > node2.json    the same, to compare survivors\n  \
             muster recover --data-dir /var/lib/muster --others node2.json --yes",
        )
}

fn dev() -> Command {
    listen_flags(
        Command::new("dev")
            .about("Start a cluster of several nodes on this machine")
            .arg(
                Arg::new("nodes")
                    .long("nodes")
                    .value_name("N")
                    .value_parser(value_parser!(u16).range(1..=32))
                    .help("How many nodes [default: 3, or as many as the data directory holds]"),
            )
            .arg(data_dir("./muster-dev"))
            .arg(kernel())
            .after_help(
                "The flags for listening are those of the first node; the others listen on 127.0.0.1, on the\n\
                 ports that follow the default ones (a port that is taken: on any free one; port 0: all on free ones).\n\
                 Starting it again on the same data directory goes on with the same cluster.\n\n\
                 Examples:\n  muster dev                three nodes, data in ./muster-dev\n  \
                 muster dev --nodes 5      five",
            ),
    )
}

fn demo() -> Command {
    listen_flags(
        Command::new("demo")
            .about("Show the main thing: a cluster, a VM, its console out of Kafka")
            .arg(data_dir("a temporary directory"))
            .arg(kernel())
            .arg(
                Arg::new("exit")
                    .long("exit")
                    .action(ArgAction::SetTrue)
                    .help("Stop everything at the end instead of waiting for Ctrl-C"),
            ),
    )
}

fn node_flags(command: Command) -> Command {
    listen_flags(
        command
            .arg(data_dir("./muster-data"))
            .arg(Arg::new("name").long("name").value_name("NAME").help("The node's name [default: this host's]"))
            .arg(kernel())
            .arg(
                Arg::new("label")
                    .long("label")
                    .value_name("KEY=VALUE")
                    .action(ArgAction::Append)
                    .help("Such as zone=a; may be given several times"),
            )
            .arg(
                Arg::new("peer")
                    .long("peer")
                    .value_name("ADDR")
                    .action(ArgAction::Append)
                    .value_parser(value_parser!(std::net::SocketAddr))
                    .help(
                        "Look for other members here as well, such as 10.0.0.2:7401: for nodes that all moved at once. May be \
                         given several times",
                    ),
            )
            .arg(Arg::new("relay-url").long("relay-url").value_name("URL").help(
                "Be reachable by this iroh relay too, and reach others by theirs; such as https://relay.example.org [default: none]",
            ))
            .arg(Arg::new("node-lost-after").long("node-lost-after").value_name("TIME").help(
                "While it leads: make a silent node's replicas anew elsewhere after this long, such as 10m [default: 10m]",
            ))
            .arg(Arg::new("cluster-version-max").long("cluster-version-max").value_name("VERSION").help(
                "Act as an older muster that can no cluster version above this: holds back what a new one brings",
            ))
            .arg(Arg::new("heartbeat-interval-ms").long("heartbeat-interval-ms").value_name("MS").help(
                "Time between heartbeats, 50 to 500; the same on all members [default: 150]",
            ))
            .arg(Arg::new("election-timeout-ms").long("election-timeout-ms").value_name("MS").help(
                "Time without a leader until one is elected, once to twice this; 1000 to 5000, four heartbeats at least, and the \
                 same on all members [default: 1000]",
            ))
            .arg(parent_arg()),
    )
    .arg(advertise("kafka", "What Kafka clients are told to connect to"))
    .arg(advertise("api", "Where the API is shown to be, and a name by which it may be called on this host"))
}

fn listen_flags(command: Command) -> Command {
    let flag = |name: &'static str, port: u16, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("ADDR")
            .value_parser(value_parser!(std::net::SocketAddr))
            .help(format!("{help} [default: 127.0.0.1:{port}]"))
    };
    command
        .arg(flag("kafka-listen", node::KAFKA_PORT, "Where Kafka clients connect (TCP)"))
        .arg(flag("api-listen", node::API_PORT, "Where the API listens (TCP)"))
        .arg(flag("peer-listen", node::PEER_PORT, "Where other nodes connect (UDP)"))
}

fn advertise(what: &'static str, help: &'static str) -> Arg {
    let flag = format!("{what}-advertise");
    Arg::new(flag.clone())
        .long(flag)
        .value_name("HOST:PORT")
        .help(format!("{help} [default: what --{what}-listen says]"))
}

fn data_dir(default: &str) -> Arg {
    Arg::new("data-dir")
        .long("data-dir")
        .value_name("DIR")
        .value_parser(value_parser!(std::path::PathBuf))
        .help(format!("Where everything is kept [default: {default}]"))
}

fn kernel() -> Arg {
    Arg::new("kernel")
        .long("kernel")
        .value_name("FILE")
        .value_parser(value_parser!(std::path::PathBuf))
        .help("Kernel of the built-in image, instead of fetching one")
}

/// The process that started this one: the node ends when it does.
fn parent_arg() -> Arg {
    Arg::new("parent").long("parent").hide(true).value_name("PID").value_parser(value_parser!(i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        command(&operations::registry().unwrap()).debug_assert();
    }

    fn parse(line: &str) -> Result<ArgMatches, String> {
        let words = line.split_whitespace().map(Into::into).collect();
        super::parse(command(&operations::registry().unwrap()), words).map_err(|error| error.to_string())
    }

    #[test]
    fn every_example_in_the_docs_parses_to_a_valid_input() {
        let registry = operations::registry().unwrap();
        for spec in registry.specs() {
            assert!(!spec.examples.is_empty(), "{} has no example", spec.name);
            assert!(!spec.docs.is_empty(), "{} has no docs", spec.name);
            for example in spec.examples {
                let matches = parse(example.command).unwrap_or_else(|error| panic!("{}: {error}", example.command));
                let wanted = doors::cli::wanted(&registry, &matches).unwrap().unwrap();
                assert_eq!(wanted.spec.name, spec.name, "{}", example.command);
            }
        }
    }

    #[test]
    fn unknown_verbs_and_flags_suggest_the_nearest() {
        for (line, expect) in [
            ("muster vn list", "'vm'"),
            ("muster statsu", "'status'"),
            ("muster vm crate web", "'create'"),
            ("muster vm create web --cpu 2", "'--cpus'"),
            ("muster vm create web --memory 2", "'--memory-mib'"),
            ("muster up --data-dri x", "'--data-dir'"),
            ("muster dev --node 3", "'--nodes'"),
            ("muster vm list --outptu json", "'--output'"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains("similar") && error.contains(expect), "{line}: {error}");
        }
    }

    #[test]
    fn a_deadline_is_for_calls_alone() {
        for (line, verb) in [
            ("muster up --deadline 5s", "up"),
            ("muster --deadline 5s up", "up"),
            ("muster join muster1_x --deadline 5s", "join"),
            ("muster node --config x.toml --deadline 5s", "node --config"),
            ("muster dev --deadline 5s", "dev"),
            ("muster demo --deadline 5s", "demo"),
            ("muster recover --data-dir x --deadline 5s", "recover"),
            ("muster version --deadline 5s", "version"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(&format!("--deadline is for what a node is asked: `muster {verb}`")), "{error}");
            assert!(parse(&line.replace("--deadline 5s", "")).is_ok(), "{line}");
        }
        for line in ["muster --deadline 5s status", "muster node list --deadline 5s"] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn node_is_a_start_and_a_noun() {
        let config = parse("muster node --config x.toml").unwrap();
        assert!(config.subcommand_matches("node").unwrap().subcommand().is_none());
        assert!(parse("muster node list -o json").is_ok());
        assert!(parse("muster node").is_err());
        assert!(parse("muster node --config x.toml list").is_err());
    }
}
