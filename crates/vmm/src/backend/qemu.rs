//! QEMU's `microvm`: the least machine that boots Linux, with virtio devices and no firmware to speak of.
//!
//! What is behind the command line, each learned the hard way:
//! - The machine starts halted (`-S`): the console has a listener before the guest's first byte.
//! - Under TCG the kernel is told the rate of the time stamp counter; without it, three boots of four hang.
//! - ACPI stays on, because a Debian kernel finds virtio-mmio devices by no other way.
//! - `pvpanic`, `panic=-1` and `-no-reboot`: a guest that panics ends, instead of "running" for ever.
//! - Sockets have relative names in the working directory, since a socket's address holds 108 bytes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use wire::agent::AGENT_PORT_NAME;

use super::{AGENT_SOCKET, Backend, CONSOLE_SOCKET, CONTROL_SOCKET, Connecting, Guest, PID_FILE, connect_socket, qmp};
use crate::event::{Accelerator, Hypervisor};
use crate::kvm;

const KIND: &str = "qemu";
const PROGRAM: &str = "qemu-system-x86_64";

/// QEMU for guests of this host's architecture.
pub(crate) struct Qemu;

impl Backend for Qemu {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn detect(&self, path: Option<&Path>) -> Option<Hypervisor> {
        if !cfg!(target_arch = "x86_64") {
            return None;
        }
        let path = path.map(Path::to_owned).or_else(|| find_program(PROGRAM))?;
        let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
        let said = match output {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
            Ok(output) => {
                tracing::warn!(path = %path.display(), status = %output.status, "this QEMU does not say its version");
                return None;
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot run QEMU");
                return None;
            }
        };
        let Some(version) = parse_version(&said) else {
            tracing::warn!(path = %path.display(), "this program does not call itself QEMU");
            return None;
        };
        let (accelerator, accelerator_reason) = match kvm::self_test() {
            Ok(took) => (Accelerator::Kvm, format!("the KVM test loop took {took:.1?}")),
            Err(reason) => (Accelerator::Tcg, reason),
        };
        Some(Hypervisor { kind: KIND, path, version, accelerator, accelerator_reason })
    }

    fn command(&self, hypervisor: &Hypervisor, guest: &Guest<'_>) -> Command {
        let mut command = Command::new(&hypervisor.path);
        command.args(arguments(hypervisor.accelerator, guest)).current_dir(guest.directory).stdin(Stdio::null());
        command
    }

    fn connect<'a>(&self, directory: &'a Path) -> Connecting<'a> {
        Box::pin(async move { qmp::connect(connect_socket(directory, CONTROL_SOCKET).await?).await })
    }
}

fn arguments(accelerator: Accelerator, guest: &Guest<'_>) -> Vec<OsString> {
    let socket = |id: &str, path: &str| format!("socket,id={id},path={path},server=on,wait=off");
    let cpu = match accelerator {
        Accelerator::Kvm => "host",
        // With `arat` the guest's timers need no periodic tick: an idle guest costs a fifth.
        Accelerator::Tcg => "qemu64,+arat",
    };
    let text = [
        ["-nodefaults", "-no-user-config"].map(str::to_owned).to_vec(),
        ["-display", "none", "-no-reboot", "-S"].map(str::to_owned).to_vec(),
        vec!["-name".into(), guest.token.into(), "-pidfile".into(), PID_FILE.into()],
        vec!["-M".into(), "microvm".into(), "-accel".into(), accelerator.to_string(), "-cpu".into(), cpu.into()],
        vec!["-smp".into(), guest.cpus.to_string(), "-m".into(), guest.memory_mib.to_string()],
        vec!["-device".into(), "pvpanic".into(), "-action".into(), "panic=exit-failure".into()],
        vec![
            "-chardev".into(),
            socket("control", CONTROL_SOCKET),
            "-mon".into(),
            "chardev=control,mode=control".into(),
        ],
        vec!["-chardev".into(), socket("console", CONSOLE_SOCKET), "-serial".into(), "chardev:console".into()],
        vec!["-chardev".into(), socket("agent", AGENT_SOCKET), "-device".into(), "virtio-serial-device".into()],
        vec!["-device".into(), format!("virtserialport,chardev=agent,name={AGENT_PORT_NAME}")],
        vec!["-append".into(), kernel_command_line(accelerator, guest)],
    ];
    let mut arguments: Vec<OsString> = text.into_iter().flatten().map(OsString::from).collect();
    arguments.extend(["-kernel".into(), guest.boot.kernel.clone().into_os_string()]);
    arguments.extend(["-initrd".into(), guest.boot.initrd.clone().into_os_string()]);
    arguments
}

fn kernel_command_line(accelerator: Accelerator, guest: &Guest<'_>) -> String {
    let clock = match accelerator {
        Accelerator::Kvm => String::new(),
        Accelerator::Tcg if guest.tsc_khz == 0 => String::new(),
        Accelerator::Tcg => format!(" tsc=reliable tsc_early_khz={}", guest.tsc_khz),
    };
    let (name, node) = (guest.name, guest.node);
    format!("console=ttyS0 quiet cryptomgr.notests panic=-1{clock} muster.name={name} muster.node={node}")
}

/// From `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)`.
fn parse_version(said: &str) -> Option<String> {
    let rest = said.strip_prefix("QEMU emulator version ")?;
    let version = rest.split_ascii_whitespace().next()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then(|| version.chars().take(32).collect())
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::BootFiles;

    #[test]
    fn the_command_line_is_the_one_that_was_measured() {
        let boot = BootFiles { kernel: "/i/kernel".into(), initrd: "/i/initrd".into() };
        let guest = Guest {
            directory: Path::new("/vms/7"),
            token: "muster-vm-7",
            boot: &boot,
            cpus: 2,
            memory_mib: 128,
            name: "web",
            node: "n1",
            tsc_khz: 2_500_000,
        };
        let line = |accelerator| {
            let words = arguments(accelerator, &guest);
            words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            line(Accelerator::Tcg),
            "-nodefaults -no-user-config -display none -no-reboot -S -name muster-vm-7 -pidfile hypervisor.pid \
             -M microvm -accel tcg -cpu qemu64,+arat -smp 2 -m 128 -device pvpanic -action panic=exit-failure \
             -chardev socket,id=control,path=control.sock,server=on,wait=off -mon chardev=control,mode=control \
             -chardev socket,id=console,path=console.sock,server=on,wait=off -serial chardev:console \
             -chardev socket,id=agent,path=agent.sock,server=on,wait=off -device virtio-serial-device \
             -device virtserialport,chardev=agent,name=org.muster.agent \
             -append console=ttyS0 quiet cryptomgr.notests panic=-1 tsc=reliable tsc_early_khz=2500000 \
             muster.name=web muster.node=n1 -kernel /i/kernel -initrd /i/initrd"
        );
        assert!(line(Accelerator::Kvm).contains("-accel kvm -cpu host"));
        assert!(!line(Accelerator::Kvm).contains("tsc"));
    }

    #[test]
    fn versions_are_read_and_other_programs_refused() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(parse_version(debian).as_deref(), Some("7.2.22"));
        assert_eq!(parse_version("sleep (GNU coreutils) 9.1"), None);
        assert_eq!(Qemu.detect(Some(Path::new("/bin/true"))), None);
        assert_eq!(Qemu.detect(Some(Path::new("/no/such/qemu"))), None);
    }
}
