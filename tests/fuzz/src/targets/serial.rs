//! The serial port: what a guest writes and reads, and what a user types, in any order.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::sync::{LazyLock, Mutex};
use vmm_devices::bus::BusDevice;
use vmm_devices::input::ConsoleInput;
use vmm_devices::interrupt::IrqLine;
use vmm_devices::output::{self, Output};
use vmm_devices::serial::Serial;

#[derive(Debug, Arbitrary)]
enum Access<'a> {
    Read(u8, u8),
    Write(u8, &'a [u8]),
    Type(&'a [u8]),
}

static OUTPUT: LazyLock<Output> =
    LazyLock::new(|| output::spawn(Box::new(std::io::sink())).expect("a thread").0);

fuzz_target!(|accesses: Vec<Access>| {
    let line = IrqLine::new().expect("an event descriptor");
    let serial = Mutex::new(Serial::new(line, OUTPUT.clone()).expect("an event descriptor"));
    for access in accesses {
        match access {
            Access::Read(offset, len) => {
                serial.lock().expect("no panic").read(offset.into(), &mut vec![0; len.into()]);
            }
            Access::Write(offset, data) => serial.lock().expect("no panic").write(offset.into(), data),
            Access::Type(data) => drop(serial.input(data)),
        }
    }
    let _ = OUTPUT.panic_message();
});
