//! Guests of a few bytes on the machine's own `/dev/kvm`: exits, interrupts, kicks.
//!
//! They need a KVM, but no hardware virtualization; without `/dev/kvm` each prints that it was skipped.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress};
use vmm_machine::kvm::{Exit, Hypervisor, Vcpu, Vm};
use vmm_machine::memory::{self, Backing};
use vmm_machine::probe;

const CODE: u64 = 0x1000;

/// A machine of one vCPU in real mode at the first byte of `code`.
fn guest(code: &[u8]) -> Option<(Vm, Vcpu)> {
    let hypervisor = match Hypervisor::open() {
        Ok(hypervisor) => hypervisor,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let memory = memory::create(1 << 20, Backing::Pages).unwrap();
    memory.write_slice(code, GuestAddress(CODE)).unwrap();
    let vm = hypervisor.create_vm(memory).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&kvm_regs { rip: CODE, rflags: 2, ..Default::default() }).unwrap();
    Some((vm, vcpu))
}

#[test]
fn port_and_memory_accesses_come_out_as_exits() {
    let code = [
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0x04, 0x02, // add al, 2
        0xee, // out dx, al
        0xb8, 0x00, 0xf0, 0x8e, 0xd8, // mov ax, 0xf000; mov ds, ax
        0xf4, // hlt
    ];
    let Some((_vm, mut vcpu)) = guest(&code) else { return };
    match vcpu.run().unwrap() {
        Exit::PortRead(0x3f8, data) => data.copy_from_slice(&[40]),
        other => panic!("{other:?}"),
    }
    assert_eq!(vcpu.run().unwrap(), Exit::PortWrite(0x3f8, &[42]));
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
}

#[test]
fn a_kick_ends_an_endless_loop_and_is_not_lost_before_it() {
    let Some((_vm, mut vcpu)) = guest(&[0xeb, 0xfe]) else { return };
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let kicker = vcpu.bind_to_thread().unwrap();
        kicker.kick();
        assert_eq!(vcpu.run().unwrap(), Exit::Interrupted, "kicked before it ran");
        sender.send(kicker).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Interrupted, "kicked while it ran");
    });
    receiver.recv().unwrap().kick();
    let start = Instant::now();
    while !thread.is_finished() {
        assert!(start.elapsed() < Duration::from_secs(10), "the vCPU was not interrupted");
        std::thread::yield_now();
    }
    thread.join().unwrap();
}

#[test]
fn the_probe_comes_to_a_verdict_in_milliseconds() {
    let Ok(hypervisor) = Hypervisor::open() else { return };
    let start = Instant::now();
    let verdict = probe::probe(&hypervisor).unwrap();
    println!("{verdict:?} in {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(2));
}
