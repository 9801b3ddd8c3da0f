//! Whole machines with a kernel of a few instructions, on the machine's own `/dev/kvm`: the PVH entry, the serial
//! line both ways, interrupts, the start of further processors, and the ways to an end.
//!
//! They need a KVM, but no hardware virtualization; without `/dev/kvm` each prints that it was skipped.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use vmm_devices::input::ConsoleInput;
use vmm_devices::output;
use vmm_machine::boot::Protocol;
use vmm_machine::kvm::Hypervisor;
use vmm_machine::machine::{Config, Control, Machine, Outcome};
use vmm_machine::memory::Backing;
use vmm_machine::timeline::Timeline;

/// Where the kernel is loaded and entered: in 32-bit protected mode, without paging.
const ENTRY: u32 = 0x10_0000;
/// How long a guest may take. It needs milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// An ELF kernel of `code`, with the note that says where PVH enters it.
fn kernel(code: &[u8]) -> std::fs::File {
    let mut note = Vec::new();
    for word in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), ENTRY] {
        note.extend(u32::to_le_bytes(word));
    }
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    // An executable for x86-64 of version 1, with two program headers right behind.
    for (at, value) in [(16, 2), (18, 62), (20, 1), (32, 64), (52, 64), (54, 56), (56, 2)] {
        file[at] = value;
    }
    file[24..28].copy_from_slice(&ENTRY.to_le_bytes());
    let data = 64 + 2 * 56;
    for (kind, offset, address, length) in
        [(4_u32, data, 0, note.len()), (1, data + note.len(), ENTRY, code.len())]
    {
        file.extend(kind.to_le_bytes());
        file.extend(7_u32.to_le_bytes());
        for field in [offset as u64, address.into(), address.into(), length as u64, length as u64, 4] {
            file.extend(field.to_le_bytes());
        }
    }
    file.extend(note);
    file.extend(code);
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(&file).unwrap();
    kernel
}

/// What the guest printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a machine to its end, and tells how that was and what it printed. `meanwhile` is called as it starts.
fn run(cpus: u8, code: &[u8], meanwhile: impl FnOnce(&Control)) -> Option<(Outcome, String)> {
    let hypervisor = match Hypervisor::open() {
        Ok(hypervisor) => hypervisor,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let printed = Printed::default();
    let (output, output_thread) = output::spawn(Box::new(printed.clone())).unwrap();
    let config = Config {
        cpus,
        memory_bytes: 32 << 20,
        backing: Backing::Pages,
        kernel: kernel(code),
        initrd: None,
        cmdline: String::new(),
        protocol: Some(Protocol::Pvh),
        acpi: false,
        devices: Vec::new(),
        serial: Some(output),
        timeline: Timeline::start(),
    };
    let machine = Machine::build(&hypervisor, config).unwrap();
    let control = machine.control();
    meanwhile(&control);
    let (ended, has_ended) = mpsc::channel();
    let runner = std::thread::spawn(move || ended.send(machine.run().unwrap()).unwrap());
    let outcome = has_ended.recv_timeout(LIMIT).unwrap_or_else(|_| {
        control.stop();
        has_ended.recv().unwrap()
    });
    runner.join().unwrap();
    output_thread.finish(LIMIT);
    let text = String::from_utf8_lossy(&printed.0.lock().unwrap()).into_owned();
    Some((outcome, text))
}

/// `mov dx, port; mov al, value; out dx, al`
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// `mov dword [address], value`
fn store(address: u32, value: u32) -> Vec<u8> {
    [&[0xc7, 0x05][..], &address.to_le_bytes(), &value.to_le_bytes()].concat()
}

const SERIAL: u16 = 0x3f8;
/// The keyboard controller's command that pulls the reset line.
fn reset() -> Vec<u8> {
    out(0x64, 0xfe)
}

#[test]
fn a_guest_prints_and_resets_the_machine() {
    let code = [out(SERIAL, b'o'), out(SERIAL, b'k'), reset(), vec![0xf4, 0xeb, 0xfd]].concat();
    let Some((outcome, text)) = run(1, &code, |_| {}) else { return };
    assert!(matches!(outcome, Outcome::Reset), "{outcome:?}");
    assert_eq!(text, "ok");
}

#[test]
fn a_triple_fault_is_a_crash() {
    // An interrupt table of no entries, then a breakpoint.
    let code =
        [store(0x7000, 0), store(0x7004, 0), vec![0x0f, 0x01, 0x1d, 0, 0x70, 0, 0, 0x0f, 0x0b]].concat();
    let Some((outcome, _)) = run(1, &code, |_| {}) else { return };
    assert!(matches!(outcome, Outcome::Crashed(_)), "{outcome:?}");
}

#[test]
fn a_stopped_guest_is_stopped_even_if_it_never_exits() {
    let Some((outcome, _)) = run(2, &[0xeb, 0xfe], |control| {
        let control = control.clone();
        std::thread::spawn(move || control.stop());
    }) else {
        return;
    };
    assert!(matches!(outcome, Outcome::Stopped), "{outcome:?}");
}

#[test]
fn every_processor_is_started_by_the_first() {
    for cpus in [2_u8, 4] {
        // For the other processors, at 0x8000, in real mode: lock inc word [0x7000]; cli; hlt; jmp back to the hlt.
        let start = [0xf0, 0xff, 0x06, 0x00, 0x70, 0xfa, 0xf4, 0xeb, 0xfd, 0x90, 0x90, 0x90];
        let words = start.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        let mut code: Vec<u8> = store(0x7000, 0);
        for (index, word) in words.enumerate() {
            code.extend(store(0x8000 + 4 * index as u32, word));
        }
        // The local APIC's command register: to all but this one, INIT; then start at page 8 (Intel SDM 3A, 11.6.1).
        code.extend(store(0xfee0_0310, 0));
        code.extend(store(0xfee0_0300, 0x000c_4500));
        code.extend(store(0xfee0_0300, 0x000c_4608));
        // again: pause; cmp word [0x7000], cpus - 1; jne again
        code.extend([0xf3, 0x90, 0x66, 0x81, 0x3d, 0x00, 0x70, 0, 0, cpus - 1, 0, 0x75, 0xf3]);
        code.extend([out(SERIAL, b'0' + cpus), reset(), vec![0xf4]].concat());
        let Some((outcome, text)) = run(cpus, &code, |_| {}) else { return };
        assert!(matches!(outcome, Outcome::Reset), "{outcome:?}");
        assert_eq!(text, cpus.to_string());
    }
}

#[test]
fn a_byte_that_is_typed_interrupts_a_guest_that_waits() {
    /// Where the interrupt table and its register's content are.
    const TABLE: u32 = 0x6000;
    const VECTOR: u32 = 0x24;
    let mut code = Vec::new();
    // handler: read the byte and print it, then reset. It is jumped over at the start.
    let handler = [
        vec![0x66, 0xba, 0xf8, 0x03, 0xec, 0xee], // mov dx, 0x3f8; in al, dx; out dx, al
        reset(),
        vec![0xf4, 0xeb, 0xfd],
    ]
    .concat();
    code.extend([0xeb, handler.len() as u8]);
    let handler_at = ENTRY + 2;
    code.extend(&handler);
    // A gate to the handler: the code segment of PVH's own table is not the guest's to use, so one is made first.
    let table = 0x5000;
    for (index, word) in [0, 0, 0x0000_ffff, 0x00cf_9b00, 0x0000_ffff, 0x00cf_9300].into_iter().enumerate() {
        code.extend(store(table + 4 * index as u32, word));
    }
    code.extend(store(TABLE + 8 * VECTOR, 8 << 16 | (handler_at & 0xffff)));
    code.extend(store(TABLE + 8 * VECTOR + 4, (handler_at & 0xffff_0000) | 0x8e00));
    code.extend(store(0x5100, (table << 16) | 0x17));
    code.extend(store(0x5104, table >> 16));
    code.extend(store(0x5110, (TABLE << 16) | 0x7ff));
    code.extend(store(0x5114, TABLE >> 16));
    code.extend([0x0f, 0x01, 0x15, 0x00, 0x51, 0, 0]); // lgdt [0x5100]
    code.extend([0x0f, 0x01, 0x1d, 0x10, 0x51, 0, 0]); // lidt [0x5110]
    let far = ENTRY + code.len() as u32 + 7;
    code.push(0xea); // jmp 8:next
    code.extend(far.to_le_bytes());
    code.extend([8, 0]);
    code.extend([0xb8, 16, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x90, 0, 0]); // ds, ss, esp
    // The first interrupt controller: vectors from 0x20, all lines off but 4, the serial line's.
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xef)] {
        code.extend(out(port, value));
    }
    // The serial line: interrupt when there is something to read.
    code.extend([out(SERIAL + 4, 8), out(SERIAL + 1, 1)].concat());
    code.extend([0xfb, 0xf4, 0xeb, 0xfd]); // sti; hlt; jmp back to the hlt
    let typed = |control: &Control| {
        let serial = control.serial().unwrap().clone();
        assert_eq!(serial.input(b"x"), 1);
    };
    let Some((outcome, text)) = run(1, &code, typed) else { return };
    assert!(matches!(outcome, Outcome::Reset), "{outcome:?}");
    assert_eq!(text, "x");
}
