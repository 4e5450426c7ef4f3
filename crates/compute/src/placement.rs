//! The placement planner: a pure function from tables to a decision, with its reasons.

use base::NodeId;

use crate::VmSpec;

/// A node as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub node: NodeId,
    pub name: String,
    /// Why it takes no VMs at all, such as `draining`.
    pub closed: Option<String>,
    /// Heard of lately.
    pub reachable: bool,
    /// Empty: no VM can run here.
    pub hypervisors: Vec<String>,
    /// CPU threads.
    pub cores: u32,
    /// Physical memory.
    pub memory_mib: u64,
    /// Memory promised to VMs already.
    pub used_mib: u64,
    /// Virtual CPUs promised to VMs already.
    pub used_cpus: u32,
}

/// Where a VM goes, or why nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// There, because.
    On { node: NodeId, why: String },
    /// The reason, for people.
    Nowhere { reason: String },
}

/// Chooses the node with the most memory left, among those that can carry the VM; ties go to fewer promised CPUs, then
/// to the lower id. Virtual CPUs are overcommitted, memory is not.
#[must_use]
pub fn place(spec: &VmSpec, hosts: &[Host]) -> Placement {
    if hosts.iter().all(|host| host.hypervisors.is_empty()) {
        return nowhere("no node offers qemu: install qemu-system-x86");
    }
    let mut refusals = Vec::new();
    let mut best: Option<&Host> = None;
    for host in hosts {
        match refusal(spec, host) {
            Some(reason) => refusals.push(format!("{}: {reason}", host.name)),
            None if best.is_none_or(|other| better(host, other)) => best = Some(host),
            None => {}
        }
    }
    match best {
        Some(host) => Placement::On {
            node: host.node,
            why: format!(
                "{} has {} MiB of {} MiB free{}",
                host.name,
                free_mib(host),
                host.memory_mib,
                if refusals.is_empty() { String::new() } else { format!("; not on {}", refusals.join(", ")) }
            ),
        },
        None => Placement::Nowhere { reason: format!("no node can take it: {}", refusals.join("; ")) },
    }
}

fn nowhere(reason: &str) -> Placement {
    Placement::Nowhere { reason: reason.to_owned() }
}

fn free_mib(host: &Host) -> u64 {
    host.memory_mib.saturating_sub(host.used_mib)
}

fn better(a: &Host, b: &Host) -> bool {
    (free_mib(b), a.used_cpus, a.node) < (free_mib(a), b.used_cpus, b.node)
}

fn refusal(spec: &VmSpec, host: &Host) -> Option<String> {
    if spec.node.is_some_and(|wanted| wanted != host.node) {
        return Some("not the node asked for".into());
    }
    if host.closed.is_some() {
        return host.closed.clone();
    }
    if host.hypervisors.is_empty() {
        return Some("offers no hypervisor".into());
    }
    if !host.reachable {
        return Some("unreachable".into());
    }
    if free_mib(host) < spec.memory_mib {
        return Some(format!("{} MiB free, {} MiB needed", free_mib(host), spec.memory_mib));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(node: u64, memory_mib: u64, used_mib: u64) -> Host {
        Host {
            node: NodeId(node),
            name: format!("n{node}"),
            closed: None,
            reachable: true,
            hypervisors: vec!["qemu 7.2".into()],
            cores: 4,
            memory_mib,
            used_mib,
            used_cpus: 0,
        }
    }

    fn spec(memory_mib: u64) -> VmSpec {
        VmSpec { cpus: 1, memory_mib, image: "minimal".into(), node: None }
    }

    fn chosen(spec: &VmSpec, hosts: &[Host]) -> Result<u64, String> {
        match place(spec, hosts) {
            Placement::On { node, .. } => Ok(node.0),
            Placement::Nowhere { reason } => Err(reason),
        }
    }

    #[test]
    fn the_emptiest_node_wins_and_ties_go_to_the_lower_id() {
        assert_eq!(chosen(&spec(128), &[host(1, 1000, 500), host(2, 1000, 100)]), Ok(2));
        assert_eq!(chosen(&spec(128), &[host(2, 1000, 0), host(1, 1000, 0)]), Ok(1));
    }

    #[test]
    fn every_refusal_is_told() {
        let mut dead = host(2, 1000, 0);
        dead.reachable = false;
        let drained = Host { closed: Some("draining".into()), ..host(3, 1000, 0) };
        let reason = chosen(&spec(600), &[host(1, 1000, 500), dead, drained]).expect_err("nowhere to go");
        assert_eq!(reason, "no node can take it: n1: 500 MiB free, 600 MiB needed; n2: unreachable; n3: draining");
    }

    #[test]
    fn without_any_hypervisor_the_reason_says_what_to_install() {
        let mut bare = host(1, 1000, 0);
        bare.hypervisors.clear();
        assert_eq!(chosen(&spec(128), &[bare]), Err("no node offers qemu: install qemu-system-x86".into()));
    }

    #[test]
    fn a_pinned_vm_goes_nowhere_else() {
        let pinned = VmSpec { node: Some(NodeId(3)), ..spec(128) };
        assert!(chosen(&pinned, &[host(1, 1000, 0)]).is_err());
        assert_eq!(chosen(&pinned, &[host(1, 1000, 0), host(3, 200, 0)]), Ok(3));
    }
}
