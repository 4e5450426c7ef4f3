//! PID 1 of a muster guest: brings the devices up, says hello on the console and to the host, and powers off when told.
//!
//! One thread, one `poll` loop over the port to the host and the power button; with no child to wait for and nothing
//! to say, the guest sleeps. What goes wrong is printed on the console and lived with where possible: a guest without
//! a network module is still a guest. PID 1 must not end; where it cannot go on, it powers off, and the host sees that.
//!
//! It never trusts the length of anything, and never waits for the host: the port is non-blocking.

mod boot;
mod cmdline;
mod port;
mod power;

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitOptions, wait};
use rustix::time::Timespec;
use wire::agent::{AGENT_PROTOCOL_VERSION, AgentMessage, HostMessage};

use crate::port::Port;
use crate::power::PowerButton;

/// Between looks at the port while no host holds its other end: it then reports a hang-up without pause.
const HOST_ABSENT_PAUSE: Duration = Duration::from_millis(200);
/// Between looks for children that ended, while there are any.
const REAP_PAUSE: Duration = Duration::from_secs(1);

fn main() {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        eprintln!("muster guest-agent {}: runs as PID 1 of a muster guest, nowhere else", env!("CARGO_PKG_VERSION"));
        std::process::exit(2);
    }
    boot::mount_file_systems();
    let options = cmdline::Options::from_kernel();
    // The greeting comes before the modules: a guest whose virtio does not work is then still heard on its console.
    boot::greet(&options);
    boot::load_modules();
    match boot::find_port() {
        Ok(port) => serve(Port::new(port)),
        Err(error) => println!("muster: no way to the host: {error}"),
    }
    power::off();
}

/// Answers the host until it, or the power button, says stop.
fn serve(mut port: Port) {
    let mut button = PowerButton::find();
    port.send(&AgentMessage::Hello(boot::hello()));
    loop {
        let children = reap();
        let ready = wait_for(&port, button.as_ref(), children);
        if ready.button && button.as_mut().is_some_and(PowerButton::was_pressed) {
            println!("muster: the power button was pressed");
            return;
        }
        if ready.host_absent {
            std::thread::sleep(HOST_ABSENT_PAUSE);
            continue;
        }
        port.flush();
        if !ready.input {
            continue;
        }
        port.fill();
        while let Some(message) = port.receive() {
            match message {
                HostMessage::Hello { protocol } => {
                    if protocol != AGENT_PROTOCOL_VERSION {
                        println!("muster: the host speaks agent protocol {protocol}, I {AGENT_PROTOCOL_VERSION}");
                    }
                    port.send(&AgentMessage::Hello(boot::hello()));
                }
                HostMessage::Ping { nonce } => port.send(&AgentMessage::Pong { nonce }),
                HostMessage::Stop => {
                    println!("muster: the host asks to stop");
                    port.send(&AgentMessage::StopAck);
                    port.flush();
                    return;
                }
            }
        }
    }
}

/// What woke the loop.
#[derive(Default)]
struct Ready {
    input: bool,
    button: bool,
    host_absent: bool,
}

fn wait_for(port: &Port, button: Option<&PowerButton>, children: bool) -> Ready {
    let mut interest = PollFlags::empty();
    if port.wants_input() {
        interest |= PollFlags::IN;
    }
    if port.has_output() {
        interest |= PollFlags::OUT;
    }
    let mut fds = vec![PollFd::new(port, interest)];
    if let Some(button) = button {
        fds.push(PollFd::new(button, PollFlags::IN));
    }
    let timeout = Timespec { tv_sec: REAP_PAUSE.as_secs().cast_signed(), tv_nsec: 0 };
    if poll(&mut fds, children.then_some(&timeout)).is_err() {
        return Ready::default();
    }
    let port_events = fds[0].revents();
    Ready {
        input: port_events.contains(PollFlags::IN),
        button: fds.get(1).is_some_and(|fd| fd.revents().contains(PollFlags::IN)),
        host_absent: port_events.contains(PollFlags::HUP) && !port_events.contains(PollFlags::IN),
    }
}

/// Collects every child that ended, the orphans that PID 1 inherits among them. True while children are left.
fn reap() -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}
