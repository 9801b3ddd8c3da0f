use std::io::Write;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::hostile;
use crate::output::{self, OutputThread};
use crate::testkit::{Harness, descriptor};

const SIZE: Size = Size { cols: 80, rows: 25 };
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// A terminal that takes what it is given only when somebody looks.
struct Terminal(Sender<Vec<u8>>, Receiver<()>);

struct Viewer {
    screen: Receiver<Vec<u8>>,
    look: Sender<()>,
}

impl Write for Terminal {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.1.recv().map_err(io::Error::other)?;
        self.0.send(data.to_vec()).map_err(io::Error::other)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Viewer {
    fn look(&self) -> Vec<u8> {
        self.look.send(()).unwrap();
        self.screen.recv_timeout(Duration::from_secs(10)).unwrap()
    }
}

fn terminal() -> (Output, OutputThread, Viewer) {
    let (to_screen, screen) = mpsc::channel();
    let (look, looks) = mpsc::channel();
    let (output, thread) = output::spawn(Box::new(Terminal(to_screen, looks))).unwrap();
    (output, thread, Viewer { screen, look })
}

fn console() -> (Console, Arc<Handle>, OutputThread) {
    let (output, thread) = output::spawn(Box::new(io::sink())).unwrap();
    let (console, handle) = Console::new(output, SIZE).unwrap();
    (console, handle, thread)
}

fn config(console: &Console) -> [u8; 14] {
    let mut config = [0xff; 14];
    console.read_config(0, &mut config);
    config
}

#[test]
fn what_the_guest_sends_is_printed_in_order() {
    let (output, _thread, viewer) = terminal();
    let (mut console, _) = Console::new(output, SIZE).unwrap();
    let mut harness = Harness::new(&mut console, 0);
    let first = harness.drivers[TRANSMIT].add(&[b"vir", b"t", b"io "], &[]);
    let second = harness.drivers[TRANSMIT].add_indirect(&[b"con", b"sole\n"], &[]);
    assert_eq!(harness.complete(TRANSMIT), (first, 0));
    assert_eq!(harness.drivers[TRANSMIT].used(), Some((second, 0)));
    let mut seen = Vec::new();
    while seen.len() < 15 {
        seen.extend(viewer.look());
    }
    assert_eq!(seen, b"virtio console\n");
}

#[test]
fn a_stopped_terminal_holds_the_guest_back_and_loses_nothing() {
    let (output, _thread, viewer) = terminal();
    let (mut console, handle) = Console::new(output, SIZE).unwrap();
    let mut harness = Harness::new(&mut console, 0);
    // More than the output's thread and its buffer take between them, in chains that they have to be cut in.
    let sent: Vec<u8> = (0u32..700 << 10).map(|i| (i % 251) as u8).collect();
    let heads: Vec<_> =
        sent.chunks(100_003).map(|part| harness.drivers[TRANSMIT].add(&[part], &[])).collect();
    harness.kick(TRANSMIT);
    while harness.run(100) {}
    let mut done: Vec<_> = std::iter::from_fn(|| harness.drivers[TRANSMIT].used()).collect();
    assert!(done.len() < heads.len(), "nothing held the guest back");
    // The input goes on meanwhile.
    let head = harness.drivers[RECEIVE].add(&[], &[8]);
    assert_eq!(handle.input(b"typed"), 5);
    assert_eq!(harness.complete(RECEIVE), (head, 5));

    let mut seen = Vec::new();
    while seen.len() < sent.len() {
        seen.extend(viewer.look());
        while harness.run(0) {}
    }
    assert!(seen == sent, "what was seen is not what was sent");
    done.extend(std::iter::from_fn(|| harness.drivers[TRANSMIT].used()));
    assert_eq!(done, heads.iter().map(|head| (*head, 0)).collect::<Vec<_>>());
}

#[test]
fn input_waits_for_buffers_and_fills_them_in_turn() {
    let (mut console, handle, _thread) = console();
    assert_eq!(handle.input(b"early "), 6);
    let mut harness = Harness::new(&mut console, 0);
    let first = harness.drivers[RECEIVE].add(&[], &[4, 1]);
    assert_eq!(harness.complete(RECEIVE), (first, 5));
    assert_eq!(harness.drivers[RECEIVE].written(first), b"early");
    assert!(handle.room.read().is_err(), "some of it still waits");
    handle.input(b"bird");
    let second = harness.drivers[RECEIVE].add(&[], &[100]);
    let third = harness.drivers[RECEIVE].add(&[], &[100]);
    assert_eq!(harness.complete(RECEIVE), (second, 5));
    assert_eq!(&harness.drivers[RECEIVE].written(second)[..5], b" bird");
    assert!(handle.room.read().is_ok(), "nobody was told of the room");
    assert_eq!(harness.drivers[RECEIVE].used(), None, "an empty buffer was returned");
    handle.input(b"!");
    harness.run(1000);
    assert_eq!(harness.drivers[RECEIVE].used(), Some((third, 1)));
}

#[test]
fn input_that_nobody_reads_is_bounded() {
    let (_console, handle, _thread) = console();
    assert_eq!(handle.input(&vec![0; 2 * CAPACITY]), CAPACITY);
    assert_eq!(handle.input(b"x"), 0);
}

#[test]
fn a_new_size_is_announced_to_a_driver_that_listens() {
    let (mut console, handle, _thread) = console();
    assert_eq!(config(&console)[..4], [80, 0, 25, 0]);
    assert_eq!(config(&console)[4..], [0; 10]);
    handle.resize(Size { cols: 132, rows: 43 });
    assert_eq!(config(&console)[..4], [132, 0, 43, 0]);

    let harness = Harness::new(&mut console, feature::SIZE);
    assert_eq!(harness.interrupt.status(), 0);
    handle.resize(Size { cols: 300, rows: 50 });
    assert_eq!(harness.interrupt.status(), VirtioInterrupt::CONFIG);
    assert_eq!(harness.interrupt.generation(), 1);
    handle.resize(Size { cols: 300, rows: 50 });
    assert_eq!(harness.interrupt.generation(), 1, "nothing had changed");
    let interrupt = Arc::clone(&harness.interrupt);
    harness.stop();
    handle.resize(SIZE);
    assert_eq!(interrupt.generation(), 1, "the device was reset");

    let harness = Harness::new(&mut console, 0);
    handle.resize(Size::default());
    assert_eq!(harness.interrupt.status(), 0, "the driver did not ask for sizes");
    assert_eq!(config(&console)[..4], [0; 4]);
}

#[test]
fn emergency_writes_need_no_queues() {
    let (output, _thread, viewer) = terminal();
    let (mut console, _) = Console::new(output, SIZE).unwrap();
    console.write_config(4, &[b'?', 0, 0, 0]);
    console.write_config(EMERG_WR, &[]);
    console.write_config(EMERG_WR, &[b'!', 0, 0, 0]);
    assert_eq!(viewer.look(), b"!");
}

#[test]
fn chains_that_make_no_sense_come_back_and_print_nothing() {
    let (mut console, handle, _thread) = console();
    let output = console.output.clone();
    let mut harness = Harness::new(&mut console, 0);
    handle.input(b"typed");
    for queue in [RECEIVE, TRANSMIT] {
        let address = harness.drivers[queue].place(b"secret\n").address.0;
        for (address, len, flags) in [
            (u64::MAX - 8, 64, 0),
            (address, 0, 0),
            (address, u32::MAX, 0),
            (address, 7, descriptor::NEXT),
            (address, 7, descriptor::NEXT | descriptor::WRITE),
            (address, 7, descriptor::INDIRECT),
        ] {
            // A chain that names itself never ends.
            harness.drivers[queue].set_descriptor(9, address, len, flags, 9);
            harness.drivers[queue].make_available(9);
            assert_eq!(harness.complete(queue), (9, 0), "{queue} {len} {flags}");
        }
    }
    assert!(output.last_lines(1).is_empty());
    // Buffers of the wrong direction are as good as none.
    let head = harness.drivers[TRANSMIT].add(&[], &[16]);
    assert_eq!(harness.complete(TRANSMIT), (head, 0));
    let head = harness.drivers[RECEIVE].add(&[b"mine"], &[]);
    assert_eq!(harness.complete(RECEIVE), (head, 0));
    let head = harness.drivers[RECEIVE].add(&[], &[16]);
    assert_eq!(harness.complete(RECEIVE), (head, 5));
}

#[test]
fn a_broken_ring_does_not_silence_the_other() {
    let (mut console, handle, _thread) = console();
    let mut harness = Harness::new(&mut console, 0);
    harness.drivers[TRANSMIT].set_available_index(1000);
    harness.kick(TRANSMIT);
    harness.run(1000);
    assert!(harness.interrupt.is_reset_needed());
    handle.input(b"typed");
    let head = harness.drivers[RECEIVE].add(&[], &[16]);
    assert_eq!(harness.complete(RECEIVE), (head, 5));
    assert_eq!(harness.stop().len(), 2);
}

#[test]
fn a_chain_of_gigabytes_leaves_the_loop_to_others() {
    let (mut console, _, _thread) = console();
    let mut harness = Harness::new(&mut console, 0);
    for index in 0..64 {
        let next = if index < 63 { descriptor::NEXT } else { 0 };
        harness.drivers[TRANSMIT].set_descriptor(index, 0, 16 << 20, next, index + 1);
    }
    harness.drivers[TRANSMIT].make_available(0);
    harness.kick(TRANSMIT);
    harness.run(1000);
    assert_eq!(harness.drivers[TRANSMIT].used(), None);
    assert_eq!(harness.stop().len(), 2);
}

proptest! {
    #![proptest_config(hostile::config())]

    #[test]
    fn any_driver_is_survived(event_idx: bool, moves in hostile::moves()) {
        let (mut console, handle, _thread) = console();
        handle.input(&[b'x'; 5000]);
        hostile::play(&mut console, event_idx, &moves);
    }
}
