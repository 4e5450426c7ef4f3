//! What the host tells the guest on the kernel command line.

/// The `muster.*` options.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// `muster.name`: the VM's name.
    pub name: String,
    /// `muster.node`: the node it runs on.
    pub node: String,
}

impl Options {
    /// From `/proc/cmdline`.
    pub fn from_kernel() -> Options {
        Options::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(line: &str) -> Options {
        let value = |key: &str| {
            let mut found = line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            found.next_back().unwrap_or("unknown").to_owned()
        };
        Options { name: value("muster.name"), node: value("muster.node") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_among_the_kernels_own() {
        let options = Options::parse("console=ttyS0 quiet muster.name=web-1 muster.nodes=no muster.node=n1\n");
        assert_eq!(options, Options { name: "web-1".into(), node: "n1".into() });
        assert_eq!(Options::parse("muster.name").name, "unknown");
    }
}
