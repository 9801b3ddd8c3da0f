use std::thread;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::hostile;
use crate::testkit::{Harness, MEMORY_SIZE, descriptor};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
const ALL: u64 = feature::STATS_VQ | feature::DEFLATE_ON_OOM | feature::REPORTING;

/// Memory that no queue of a test uses.
const PAGE: u64 = 8 << 20;

fn numbers(pages: &[u64]) -> Vec<u8> {
    pages.iter().flat_map(|page| ((page / PAGE_SIZE) as u32).to_le_bytes()).collect()
}

fn fill(harness: &Harness, pages: u64) {
    harness.memory.write_slice(&vec![7; (pages * PAGE_SIZE) as usize], GuestAddress(PAGE)).unwrap();
}

/// Which of the pages from [`PAGE`] on still hold what [`fill`] wrote.
fn kept(harness: &Harness, pages: u64) -> Vec<bool> {
    let byte = |page| harness.memory.read_obj::<u8>(GuestAddress(PAGE + page * PAGE_SIZE + 99)).unwrap();
    (0..pages).map(|page| byte(page) == 7).collect()
}

#[test]
fn inflating_gives_exactly_these_pages_back() {
    let (mut balloon, _) = Balloon::new(0).unwrap();
    let mut harness = Harness::new(&mut balloon, ALL);
    fill(&harness, 6);
    // Out of order, twice, and cut in the middle of a number.
    let list = numbers(&[PAGE + 3 * PAGE_SIZE, PAGE + PAGE_SIZE, PAGE + 2 * PAGE_SIZE, PAGE + PAGE_SIZE]);
    let head = harness.drivers[INFLATE].add(&[&list[..6], &list[6..], &[1, 2]], &[]);
    assert_eq!(harness.complete(INFLATE), (head, 0));
    assert_eq!(kept(&harness, 6), [true, false, false, false, true, true]);
    let head = harness.drivers[DEFLATE].add(&[&list], &[]);
    assert_eq!(harness.complete(DEFLATE), (head, 0));
}

#[test]
fn reported_pages_are_given_back_whole() {
    let (mut balloon, _) = Balloon::new(0).unwrap();
    let mut harness = Harness::new(&mut balloon, ALL);
    fill(&harness, 4);
    // The first page and the last are not reported whole.
    harness.drivers[REPORTING].set_descriptor(5, PAGE + 8, 3 * PAGE_SIZE as u32, descriptor::WRITE, 0);
    harness.drivers[REPORTING].make_available(5);
    assert_eq!(harness.complete(REPORTING), (5, 0));
    assert_eq!(kept(&harness, 4), [true, false, false, true]);
}

#[test]
fn queues_of_features_that_were_left_out_are_not_counted() {
    let (mut balloon, _) = Balloon::new(0).unwrap();
    let mut harness = Harness::new(&mut balloon, feature::REPORTING);
    fill(&harness, 1);
    harness.drivers[2].set_descriptor(5, PAGE, PAGE_SIZE as u32, descriptor::WRITE, 0);
    harness.drivers[2].make_available(5);
    assert_eq!(harness.complete(2), (5, 0));
    assert_eq!(kept(&harness, 1), [false]);
}

#[test]
fn pages_outside_memory_change_nothing() {
    let (mut balloon, _) = Balloon::new(0).unwrap();
    let mut harness = Harness::new(&mut balloon, ALL);
    fill(&harness, 2);
    let end = MEMORY_SIZE as u64;
    let list = [numbers(&[end - PAGE_SIZE, end]), vec![0xff; 64]].concat();
    let head = harness.drivers[INFLATE].add(&[&list], &[]);
    assert_eq!(harness.complete(INFLATE), (head, 0));
    assert_eq!(kept(&harness, 2), [true, true]);
}

#[test]
fn a_new_target_is_announced_and_the_size_is_told() {
    let (mut balloon, handle) = Balloon::new(3 * PAGE_SIZE + 5).unwrap();
    let mut config = [0xff; 10];
    balloon.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let harness = Harness::new(&mut balloon, ALL);
    handle.set_target(3 * PAGE_SIZE);
    assert_eq!(harness.interrupt.generation(), 0, "nothing had changed");
    handle.set_target(1 << 20);
    assert_eq!(harness.interrupt.generation(), 1);
    balloon.write_config(ACTUAL, &256u32.to_le_bytes());
    balloon.write_config(0, &9u32.to_le_bytes());
    balloon.write_config(ACTUAL, &[1]);
    assert_eq!(handle.actual(), 1 << 20);
    balloon.read_config(0, &mut config[..4]);
    assert_eq!(config[..4], [0, 1, 0, 0]);
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let (mut balloon, handle) = Balloon::new(0).unwrap();
    let mut harness = Harness::new(&mut balloon, ALL);
    assert_eq!(handle.statistics(Duration::ZERO), None);
    // The first buffer is for the device to keep.
    let first = harness.drivers[STATISTICS].add(&[&[0; 10]], &[]);
    harness.kick(STATISTICS);
    while harness.run(0) {}
    assert_eq!(harness.drivers[STATISTICS].used(), None);

    let asking = thread::spawn(move || handle.statistics(Duration::from_secs(10)));
    while harness.drivers[STATISTICS].used() != Some((first, 0)) {
        harness.run(100);
    }
    let told = [&[4, 0, 1, 2, 0, 0, 0, 0, 0, 0][..], &[99, 0, 1, 0, 0, 0, 0, 0, 0, 0], &[5]].concat();
    harness.drivers[STATISTICS].add(&[&told], &[]);
    harness.kick(STATISTICS);
    harness.run(1000);
    let expected = Statistics { free: Some(0x201), ..Statistics::default() };
    assert_eq!(asking.join().unwrap(), Some(expected));
}

proptest! {
    #![proptest_config(hostile::config())]

    #[test]
    fn any_driver_is_survived(event_idx: bool, moves in hostile::moves()) {
        let (mut balloon, handle) = Balloon::new(1 << 20).unwrap();
        let _ = handle.statistics(Duration::ZERO);
        hostile::play(&mut balloon, event_idx, &moves);
    }
}
