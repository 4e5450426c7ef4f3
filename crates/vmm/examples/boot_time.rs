//! How long a guest takes from start to the agent's hello, through `Vmm` and by hand with the very same QEMU line.
//!
//! `cargo run -p vmm --example boot_time -- [BOOTS] [CPUS] [IMAGES]`

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base::{VmEpoch, VmId, VmIncarnation};
use tokio::sync::mpsc;
use vmm::{IMAGE_MINIMAL, StartVm, VmEvent, VmEventKind, Vmm, VmmConfig};
use wire::agent::{AgentMessage, FrameReader};

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let boots: u64 = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let cpus: u32 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let images = arguments.next().map_or_else(|| std::env::temp_dir().join("muster-boot-time-images"), PathBuf::from);
    let data = std::env::temp_dir().join(format!("muster-boot-time-{}", std::process::id()));
    let (sender, mut events) = mpsc::channel(256);
    let vmm = Vmm::new(VmmConfig { images, ..VmmConfig::new(&data, "node") }, sender)?;
    let hypervisor = vmm.detect().await.ok_or("no QEMU: install qemu-system-x86")?;
    println!("{hypervisor}: {}", hypervisor.accelerator_reason);
    vmm.prepare_image(IMAGE_MINIMAL, |what| println!("{what}")).await?;

    let (mut running, mut through, mut by_hand) = (Vec::new(), Vec::new(), Vec::new());
    // In turn, so that a busy moment of the host hits both.
    for boot in 1..=boots {
        let (until_running, until_ready, pid) = boot_through(&vmm, &mut events, boot, cpus).await?;
        running.push(until_running);
        through.push(until_ready);
        let arguments = arguments_of(pid)?;
        vmm.stop(VmId(1), VmEpoch(1), Duration::ZERO).await?;
        wait(&mut events, |kind| matches!(kind, VmEventKind::Stopped { .. })).await?;
        let directory = data.join("by-hand");
        by_hand.push(tokio::task::spawn_blocking(move || boot_by_hand(&arguments, &directory)).await??);
    }
    vmm.shutdown(Duration::ZERO).await;
    std::fs::remove_dir_all(&data)?;
    for (name, mut times) in
        [("through Vmm, to its guest running", running), ("through Vmm", through), ("by hand", by_hand)]
    {
        times.sort();
        let (least, most) = (times[0], times[times.len() - 1]);
        println!("{name}: median {:.2?}, {least:.2?} to {most:.2?}, {boots} boots", times[times.len() / 2]);
    }
    Ok(())
}

async fn boot_through(
    vmm: &Vmm,
    events: &mut mpsc::Receiver<VmEvent>,
    boot: u64,
    cpus: u32,
) -> Result<(Duration, Duration, u32), Failure> {
    let begun = Instant::now();
    let (id, epoch, incarnation) = (VmId(1), VmEpoch(1), VmIncarnation(boot));
    let image = IMAGE_MINIMAL.to_owned();
    vmm.start(StartVm { id, name: "boot".into(), epoch, incarnation, cpus, memory_mib: 128, image }).await?;
    let started = wait(events, |kind| matches!(kind, VmEventKind::Started { .. })).await?;
    let until_running = begun.elapsed();
    let VmEventKind::Started { pid, .. } = started else { return Err("not started".into()) };
    wait(events, |kind| matches!(kind, VmEventKind::Ready { .. })).await?;
    Ok((until_running, begun.elapsed(), pid))
}

async fn wait(
    events: &mut mpsc::Receiver<VmEvent>,
    wanted: impl Fn(&VmEventKind) -> bool,
) -> Result<VmEventKind, Failure> {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(120), events.recv()).await?;
        match next.ok_or("no more events")?.kind {
            kind if wanted(&kind) => return Ok(kind),
            kind @ (VmEventKind::Failed { .. } | VmEventKind::Exited { .. }) => return Err(format!("{kind:?}").into()),
            _ => {}
        }
    }
}

/// The line with which a guest runs, without what makes it start halted.
fn arguments_of(pid: u32) -> Result<Vec<String>, Failure> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    Ok(line.trim_end_matches('\0').split('\0').filter(|word| *word != "-S").map(str::to_owned).collect())
}

fn boot_by_hand(arguments: &[String], directory: &Path) -> Result<Duration, String> {
    let text = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(directory).map_err(text)?;
    let (program, arguments) = arguments.split_first().ok_or("no arguments")?;
    let begun = Instant::now();
    let mut qemu = Command::new(program).args(arguments).current_dir(directory).spawn().map_err(text)?;
    let outcome = hello(&directory.join("agent.sock"), begun + Duration::from_secs(120));
    let took = begun.elapsed();
    qemu.kill().map_err(text)?;
    qemu.wait().map_err(text)?;
    std::fs::remove_dir_all(directory).map_err(text)?;
    outcome.map(|()| took)
}

/// Waits for the agent's hello on the socket that QEMU will make at `path`.
fn hello(path: &Path, deadline: Instant) -> Result<(), String> {
    let mut stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => return Err(error.to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let message = wire::agent::HostMessage::Hello { protocol: wire::agent::AGENT_PROTOCOL_VERSION };
    let frame = wire::agent::encode_frame(&message).map_err(|error| error.to_string())?;
    stream.write_all(&frame).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).map_err(|error| error.to_string())?;
    let mut frames = FrameReader::new();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk).map_err(|error| error.to_string())?;
        if count == 0 {
            return Err("QEMU ended".to_owned());
        }
        frames.push(&chunk[..count]);
        if let Ok(Some(AgentMessage::Hello(_))) = frames.next_message() {
            return Ok(());
        }
    }
}
