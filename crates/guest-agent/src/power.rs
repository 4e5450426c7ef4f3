//! Power: the button that the host can press, and the way out.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::system::{RebootCommand, reboot};

/// `struct input_event` on a 64-bit Linux: two words of time, type u16, code u16, value i32.
const INPUT_EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// The ACPI power button, as an input device.
pub struct PowerButton(File);

impl PowerButton {
    /// The button, if this machine has one.
    pub fn find() -> Option<PowerButton> {
        let inputs = std::fs::read_dir("/sys/class/input").ok()?;
        let event = inputs.flatten().find(|input| {
            input.file_name().to_string_lossy().starts_with("event")
                && std::fs::read_to_string(input.path().join("device/name"))
                    .is_ok_and(|name| name.trim_end() == "Power Button")
        })?;
        let device = PathBuf::from("/dev/input").join(event.file_name());
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        options.open(device).ok().map(PowerButton)
    }

    /// Reads the pending events; true if one says that the power key went down.
    pub fn was_pressed(&mut self) -> bool {
        let mut events = [0; 16 * INPUT_EVENT_BYTES];
        let count = self.0.read(&mut events).unwrap_or(0);
        events[..count].chunks_exact(INPUT_EVENT_BYTES).any(is_power_key_down)
    }
}

impl AsFd for PowerButton {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn is_power_key_down(event: &[u8]) -> bool {
    let kind = u16::from_ne_bytes([event[16], event[17]]);
    let code = u16::from_ne_bytes([event[18], event[19]]);
    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    kind == EV_KEY && code == KEY_POWER && value == 1
}

/// Powers off. Returns only if the kernel refuses, and then ends PID 1, which panics the kernel: the host sees both.
pub fn off() -> ! {
    println!("muster: powering off");
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        println!("muster: cannot power off: {error}");
    }
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_power_key_going_down_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut bytes = vec![0; 16];
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes.extend_from_slice(&value.to_ne_bytes());
            bytes
        };
        assert!(is_power_key_down(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_power_key_down(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!is_power_key_down(&event(EV_KEY, 30, 1)));
        assert!(!is_power_key_down(&event(0, KEY_POWER, 1)));
    }
}
