//! The two systems, each as its users start it: three nodes on loopback, their data on this machine's disk, synced.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use data_encoding::BASE64;
use serde_json::{Value, json};
use testkit::{Api, Cluster, Folder, Process, free_port, wait_until};

/// Something that keeps keys.
pub trait System: Sync {
    fn name(&self) -> &'static str;
    /// Where clients connect.
    fn addresses(&self) -> Vec<SocketAddr>;
    /// The ids of its processes.
    fn processes(&self) -> Vec<u32>;
    /// First line and body of a request.
    fn put(&self, key: &str, value: &str) -> (String, String);
    /// Of a linearizable read.
    fn get(&self, key: &str) -> (String, String);
    /// Whether that says that it was done, and, of a get, with a value.
    fn is_answer(&self, put: bool, body: &str) -> bool;
}

/// Three nodes of the built binary.
pub struct Muster(Cluster);

impl Muster {
    /// Ready to lose a node.
    pub fn start(folder: &Folder) -> anyhow::Result<Muster> {
        let cluster = Cluster::start(folder, 3)?;
        wait_until(Duration::from_secs(60), "the cluster can lose a node", || {
            let status = cluster.nodes[0].api().get("/v1/status")?.ok()?;
            ensure!(status["fault_tolerance"] == "survives the loss of 1 node", "{}", status["fault_tolerance"]);
            Ok(())
        })?;
        Ok(Muster(cluster))
    }
}

impl System for Muster {
    fn name(&self) -> &'static str {
        "muster"
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.0.nodes.iter().map(|node| node.api).collect()
    }

    fn processes(&self) -> Vec<u32> {
        self.0.nodes.iter().filter_map(testkit::Node::pid).collect()
    }

    fn put(&self, key: &str, value: &str) -> (String, String) {
        (format!("PUT /v1/kv/{key}"), json!({ "value": value }).to_string())
    }

    fn get(&self, key: &str) -> (String, String) {
        (format!("GET /v1/kv/{key}"), String::new())
    }

    fn is_answer(&self, put: bool, body: &str) -> bool {
        body.contains(if put { "\"revision\":" } else { "\"value\":" })
    }
}

/// Three nodes of Debian's etcd-server.
pub struct Etcd {
    processes: Vec<Process>,
    clients: Vec<SocketAddr>,
}

impl Etcd {
    /// Formed, with a leader.
    pub fn start(folder: &Folder) -> anyhow::Result<Etcd> {
        let binary =
            ["/usr/bin/etcd", "/usr/local/bin/etcd"].map(PathBuf::from).into_iter().find(|path| path.is_file());
        let binary = binary.context("there is no etcd: install the package etcd-server")?;
        let ports: Vec<(u16, u16)> = (0..3).map(|_| Ok((free_port()?, free_port()?))).collect::<anyhow::Result<_>>()?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(at, (peer, _))| format!("etcd{at}={}", url(*peer))).collect();
        let mut processes = Vec::new();
        for (at, (peer, client)) in ports.iter().enumerate() {
            let name = format!("etcd{at}");
            let mut command = Command::new(&binary);
            command.arg("--name").arg(&name).arg("--data-dir").arg(folder.path().join(&name));
            for (flag, value) in [
                ("--listen-peer-urls", url(*peer)),
                ("--initial-advertise-peer-urls", url(*peer)),
                ("--listen-client-urls", url(*client)),
                ("--advertise-client-urls", url(*client)),
                ("--initial-cluster", peers.join(",")),
                ("--initial-cluster-state", "new".to_owned()),
                ("--logger", "zap".to_owned()),
                ("--log-level", "error".to_owned()),
            ] {
                command.arg(flag).arg(value);
            }
            processes.push(Process::start(&mut command, &name, folder.path())?);
        }
        let clients: Vec<SocketAddr> =
            ports.iter().map(|(_, client)| SocketAddr::from(([127, 0, 0, 1], *client))).collect();
        for address in &clients {
            wait_until(Duration::from_secs(30), "etcd has a leader", || {
                let health: Value = Api::at(*address).get("/health")?.ok()?;
                ensure!(health["health"] == "true", "{health}");
                Ok(())
            })?;
        }
        Ok(Etcd { processes, clients })
    }
}

impl System for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.clients.clone()
    }

    fn processes(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }

    fn put(&self, key: &str, value: &str) -> (String, String) {
        let body = json!({ "key": base64(key), "value": base64(value) }).to_string();
        ("POST /v3/kv/put".to_owned(), body)
    }

    fn get(&self, key: &str) -> (String, String) {
        ("POST /v3/kv/range".to_owned(), json!({ "key": base64(key) }).to_string())
    }

    fn is_answer(&self, put: bool, body: &str) -> bool {
        body.contains(if put { "\"revision\":" } else { "\"value\":" })
    }
}

fn base64(text: &str) -> String {
    BASE64.encode(text.as_bytes())
}
