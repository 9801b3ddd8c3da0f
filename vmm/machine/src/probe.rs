//! Finds out whether this KVM can run Linux, by running a few instructions of what Linux needs.
//!
//! CPU flags do not tell: `/dev/kvm` may be served by software that interprets what a guest executes in
//! ring 0, slowly and without all instructions. The probe is a guest of one page that counts in a loop, then
//! uses `popcnt` and `cmpxchg16b`; hardware takes well under a millisecond for it.

use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::{Exit, Hypervisor, KvmError};
use crate::memory::{self, Backing, MemoryError};
use crate::x86::start;

/// Where the guest's instructions lie.
const CODE: u64 = 0x1_0000;
/// Where its 16-byte operand lies.
const OPERAND: u64 = 0x1_1000;
/// The port on which the guest says what it has reached.
const REPORT: u16 = 0x0a01;
/// Turns of the counted loop, two instructions each.
const TURNS: u32 = 2000;
/// A loop of [`TURNS`] turns that takes longer runs at fewer than 4 million instructions per second:
/// the slowest hardware is a hundred times faster, and Linux would need minutes to boot.
const TOO_SLOW: Duration = Duration::from_millis(1);

/// What the probe found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Guest kernel code runs on the processor.
    Capable,
    /// KVM gave up on an instruction that Linux uses.
    Unimplemented {
        /// Which.
        instruction: &'static str,
    },
    /// Guest kernel code is interpreted.
    Interpreted {
        /// How fast: instructions per second.
        instructions_per_second: u64,
    },
}

/// The probe itself could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// KVM refused.
    #[error("cannot set the probe up")]
    Kvm(#[from] KvmError),
    /// There was no memory for it.
    #[error("cannot set the probe up")]
    Memory(#[from] MemoryError),
    /// It could not be written into that memory.
    #[error("cannot load the probe")]
    Load(#[from] vm_memory::GuestMemoryError),
    /// The guest did something that its instructions do not say.
    #[error("the probe ended with {0}")]
    Unexpected(String),
}

/// A busy host may take the processor away in the middle of the loop: one quick run out of so many is enough.
const TRIES: u32 = 6;

/// Runs the probe, which takes a few milliseconds, and some tens of them where it is slow.
pub fn probe(hypervisor: &Hypervisor) -> Result<Verdict, ProbeError> {
    let mut fastest = 0;
    for _ in 0..TRIES {
        match run(hypervisor)? {
            Verdict::Interpreted { instructions_per_second } => {
                fastest = fastest.max(instructions_per_second);
            }
            verdict => return Ok(verdict),
        }
    }
    Ok(Verdict::Interpreted { instructions_per_second: fastest })
}

fn run(hypervisor: &Hypervisor) -> Result<Verdict, ProbeError> {
    let memory = memory::create(1 << 20, Backing::Pages)?;
    memory.write_slice(&code(), GuestAddress(CODE))?;
    let vm = hypervisor.create_vm(memory)?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid(&hypervisor.supported_cpuid()?)?;
    let mut sregs = vcpu.sregs()?;
    start::long_mode(vm.memory(), &mut sregs)?;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: CODE, rsi: OPERAND, rflags: 2, ..Default::default() })?;

    let mut loop_started = Instant::now();
    let mut loop_time = Duration::ZERO;
    let mut next = "hlt";
    loop {
        match vcpu.run()? {
            Exit::PortWrite(REPORT, [0]) => {
                loop_started = Instant::now();
                next = "loop";
            }
            Exit::PortWrite(REPORT, [1]) => {
                loop_time = loop_started.elapsed();
                next = "popcnt";
            }
            Exit::PortWrite(REPORT, [2]) => next = "cmpxchg16b",
            Exit::PortWrite(REPORT, [3]) => next = "hlt",
            Exit::Halt => break,
            // Without an interrupt table, an undefined instruction becomes a triple fault.
            Exit::InternalError | Exit::TripleFault => {
                return Ok(Verdict::Unimplemented { instruction: next });
            }
            Exit::Interrupted => {}
            other => return Err(ProbeError::Unexpected(format!("{other:x?}"))),
        }
    }
    if loop_time > TOO_SLOW {
        let instructions = u128::from(2 * TURNS) * 1_000_000_000 / loop_time.as_nanos();
        return Ok(Verdict::Interpreted { instructions_per_second: instructions as u64 });
    }
    Ok(Verdict::Capable)
}

/// The guest: 64-bit code in ring 0.
fn code() -> Vec<u8> {
    let mut code = vec![0x66, 0xba]; // mov dx, REPORT
    code.extend(REPORT.to_le_bytes());
    code.extend([0xb0, 0, 0xee]); // mov al, 0; out dx, al
    code.push(0xb9); // mov ecx, TURNS
    code.extend(TURNS.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc]); // again: dec ecx; jnz again
    code.extend([0xb0, 1, 0xee]); // mov al, 1; out dx, al
    code.extend([0xf3, 0x48, 0x0f, 0xb8, 0xde]); // popcnt rbx, rsi
    code.extend([0xb0, 2, 0xee]); // mov al, 2; out dx, al
    code.extend([0x31, 0xc0, 0x31, 0xd2]); // xor eax, eax; xor edx, edx: equal to the operand
    code.extend([0xf0, 0x48, 0x0f, 0xc7, 0x0e]); // lock cmpxchg16b [rsi]
    code.extend([0x66, 0xba]); // mov dx, REPORT
    code.extend(REPORT.to_le_bytes());
    code.extend([0xb0, 3, 0xee]); // mov al, 3; out dx, al
    code.push(0xf4); // hlt
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_counts_down_and_ends_in_a_halt() {
        let code = code();
        assert_eq!(code[7], 0xb9);
        assert_eq!(code[8..12], TURNS.to_le_bytes());
        assert_eq!(code.last(), Some(&0xf4));
    }
}
