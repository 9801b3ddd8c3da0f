//! The virtio-mmio transport: any accesses to its registers, with activation and reset through a running loop.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use vmm_devices::bus::BusDevice;
use vmm_devices::interrupt::IrqLine;
use vmm_devices::reactor::{Handle, Reactor};
use vmm_devices::testkit::{self, Driver, EchoDevice};
use vmm_devices::virtio::mmio::{MmioTransport, register};

#[derive(Debug, Arbitrary)]
enum Access<'a> {
    Read(u16, u8),
    Write(u16, &'a [u8]),
    /// A register by its place in the list, with a small value: deeper than chance would get.
    Set(u8, u8),
    /// What a proper driver does up to a queue that works.
    Configure,
}

const REGISTERS: [u64; 14] = [
    register::DEVICE_FEATURES_SEL,
    register::DRIVER_FEATURES,
    register::DRIVER_FEATURES_SEL,
    register::QUEUE_SEL,
    register::QUEUE_NUM,
    register::QUEUE_READY,
    register::QUEUE_NOTIFY,
    register::INTERRUPT_ACK,
    register::STATUS,
    register::QUEUE_DESC_LOW,
    register::QUEUE_DRIVER_LOW,
    register::QUEUE_DEVICE_LOW,
    register::QUEUE_DEVICE_HIGH,
    register::CONFIG,
];

static LOOP: LazyLock<Handle> = LazyLock::new(|| {
    let mut reactor = Reactor::new().expect("an event loop");
    let handle = reactor.handle();
    std::thread::spawn(move || reactor.run());
    handle
});

fuzz_target!(|accesses: Vec<Access>| {
    let memory = testkit::memory();
    let line = IrqLine::new().expect("an event descriptor");
    let mut transport = MmioTransport::new(Box::new(EchoDevice), Arc::clone(&memory), LOOP.clone(), line)
        .expect("a transport");
    let mut set = |offset: u64, value: u32| transport.write(offset, &value.to_le_bytes());
    for access in &accesses {
        match access {
            Access::Set(register, value) => {
                set(REGISTERS[usize::from(*register) % REGISTERS.len()], (*value).into());
            }
            Access::Configure => {
                for status in [0, 1, 3] {
                    set(register::STATUS, status);
                }
                set(register::DRIVER_FEATURES_SEL, 1);
                set(register::DRIVER_FEATURES, 1);
                set(register::STATUS, 11);
                set(register::QUEUE_SEL, 0);
                let mut driver = Driver::new(&memory, 0x1000, 8);
                driver.configure(&mut set);
                set(register::STATUS, 15);
                driver.add(&[], &[5]);
                set(register::QUEUE_NOTIFY, 0);
            }
            Access::Read(..) | Access::Write(..) => {}
        }
    }
    for access in accesses {
        match access {
            Access::Read(offset, len) => transport.read(offset.into(), &mut vec![0; len.into()]),
            Access::Write(offset, data) => transport.write(offset.into(), data),
            Access::Set(..) | Access::Configure => {}
        }
    }
    // Takes its worker out of the loop.
    transport.write(register::STATUS, &0u32.to_le_bytes());
});
