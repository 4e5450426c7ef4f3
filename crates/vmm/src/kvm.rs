//! Whether this host's KVM is worth using: a machine of one page of code is timed.
//!
//! `/dev/kvm` may exist and open although the host emulates each privileged instruction (nested virtualization on a
//! host without it does that); an ordinary kernel then never boots. Asking for capabilities does not tell, nor does a
//! probe in real mode or one that only halts: both take so few instructions that emulation answers in time. A loop in
//! 64-bit mode does tell: it takes microseconds on hardware; where it was emulated, 17 ms were measured, and a tenth of
//! the 80 to 270 ms of a loop ten times as long. That one told no more, and a node waits for this before it is ready.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// Where KVM lives.
const DEVICE: &str = "/dev/kvm";
/// How long the loop may take.
const LOOP_TIME_MAX: Duration = Duration::from_millis(3);
/// Tries, of which the best counts: a busy host may take the processor away for longer than the loop's bound.
const TRIES: usize = 3;
/// When to give up on a KVM that does not come back at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How long the loop took, or why KVM cannot be used. Blocks for up to two seconds.
pub(crate) fn self_test() -> Result<Duration, String> {
    if !Path::new(DEVICE).exists() {
        return Err(format!("{DEVICE} does not exist"));
    }
    let (answer, answers) = mpsc::sync_channel(1);
    // A thread of its own, left behind if KVM never returns.
    let spawned = std::thread::Builder::new().name("kvm-self-test".into()).spawn(move || {
        let _ = answer.send(best_time());
    });
    spawned.map_err(|error| format!("cannot start the KVM self-test: {error}"))?;
    let took = answers
        .recv_timeout(ANSWER_WITHIN)
        .map_err(|_| format!("the KVM self-test did not return within {ANSWER_WITHIN:?}"))??;
    judge(took)
}

fn judge(took: Duration) -> Result<Duration, String> {
    if took <= LOOP_TIME_MAX {
        return Ok(took);
    }
    Err(format!("KVM opens, but its test loop took {took:.1?} (more than {LOOP_TIME_MAX:?}): it is emulated"))
}

fn best_time() -> Result<Duration, String> {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        best = best.min(time_loop()?);
        if best <= LOOP_TIME_MAX {
            break;
        }
    }
    Ok(best)
}

#[cfg(target_arch = "x86_64")]
fn time_loop() -> Result<Duration, String> {
    machine::time_loop()
}

#[cfg(not(target_arch = "x86_64"))]
fn time_loop() -> Result<Duration, String> {
    Err("no KVM self-test for this architecture".to_owned())
}

#[cfg(target_arch = "x86_64")]
mod machine {
    use std::time::{Duration, Instant};

    use kvm_ioctls::{Kvm, VcpuExit};

    const PAGE: usize = 4096;
    const CODE_AT: usize = 0;
    const PML4_AT: usize = PAGE;
    const PDPT_AT: usize = 2 * PAGE;
    const PD_AT: usize = 3 * PAGE;
    const MEMORY_BYTES: usize = 4 * PAGE;

    const LOOPS: u32 = 10_000;
    /// `mov ecx, LOOPS; again: dec ecx; jnz again; hlt`
    const CODE: [u8; 10] = {
        let loops = LOOPS.to_le_bytes();
        [0xb9, loops[0], loops[1], loops[2], loops[3], 0xff, 0xc9, 0x75, 0xfc, 0xf4]
    };

    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    const CR0_PROTECTED: u64 = 1;
    const CR0_PAGING: u64 = 1 << 31;
    const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
    const EFER_LONG_MODE_ENABLED_AND_ACTIVE: u64 = 1 << 8 | 1 << 10;

    #[repr(C, align(4096))]
    struct Memory([u8; MEMORY_BYTES]);

    /// Runs the loop in a fresh machine and says how long it took.
    pub(super) fn time_loop() -> Result<Duration, String> {
        let failed = |what: &'static str| move |error: kvm_ioctls::Error| format!("KVM cannot {what}: {error}");
        // Declared first, dropped last: the machine below borrows it behind the compiler's back.
        let mut memory = Box::new(Memory([0; MEMORY_BYTES]));
        fill(&mut memory.0);
        let kvm = Kvm::new().map_err(failed("be opened"))?;
        let vm = kvm.create_vm().map_err(failed("create a machine"))?;
        crate::sys::lend_memory(&vm, &mut memory.0).map_err(failed("map memory"))?;
        let mut cpu = vm.create_vcpu(0).map_err(failed("create a processor"))?;

        let mut special = cpu.get_sregs().map_err(failed("read registers"))?;
        special.cr0 = CR0_PROTECTED | CR0_PAGING;
        special.cr3 = PML4_AT as u64;
        special.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
        special.efer = EFER_LONG_MODE_ENABLED_AND_ACTIVE;
        let code_segment = kvm_bindings::kvm_segment {
            limit: u32::MAX,
            selector: 8,
            type_: 0b1011,
            present: 1,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let data_segment = kvm_bindings::kvm_segment { selector: 16, type_: 0b0011, l: 0, db: 1, ..code_segment };
        special.cs = code_segment;
        for segment in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
            *segment = data_segment;
        }
        cpu.set_sregs(&special).map_err(failed("enter 64-bit mode"))?;
        let start = kvm_bindings::kvm_regs { rip: CODE_AT as u64, rflags: 2, ..Default::default() };
        cpu.set_regs(&start).map_err(failed("set registers"))?;

        let begun = Instant::now();
        match cpu.run().map_err(failed("run"))? {
            VcpuExit::Hlt => {}
            other => return Err(format!("KVM left its test loop with {other:?} instead of a halt")),
        }
        let took = begun.elapsed();
        match cpu.get_regs().map_err(failed("read registers"))?.rcx {
            0 => Ok(took),
            left => Err(format!("KVM left its test loop with {left} of {LOOPS} rounds to go")),
        }
    }

    /// Code, and page tables that map the first 2 MiB to themselves.
    fn fill(memory: &mut [u8; MEMORY_BYTES]) {
        let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
        put(CODE_AT, &CODE);
        put(PML4_AT, &(PDPT_AT as u64 | PRESENT_WRITABLE).to_le_bytes());
        put(PDPT_AT, &(PD_AT as u64 | PRESENT_WRITABLE).to_le_bytes());
        put(PD_AT, &(PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_quick_loop_passes() {
        assert_eq!(judge(Duration::from_micros(40)), Ok(Duration::from_micros(40)));
        let reason = judge(Duration::from_millis(8)).unwrap_err();
        assert!(reason.contains("emulated"), "{reason}");
    }

    #[test]
    fn the_test_gives_a_verdict_with_a_reason() {
        match self_test() {
            Ok(took) => assert!(took <= LOOP_TIME_MAX),
            Err(reason) => assert!(reason.to_lowercase().contains("kvm"), "{reason}"),
        }
    }
}
