//! Both engines, driven by a guest's driver in ordinary memory.

use std::fs;
use std::io::Write;
use std::sync::Mutex;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::request::kind;
use super::*;
use crate::testkit::{Harness, descriptor};

const SECTORS: usize = 64;
const ENGINES: [EngineChoice; 2] = [EngineChoice::Auto, EngineChoice::Threads];

/// A disk whose bytes are all different from their neighbours' in other sectors.
fn image() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&content()).unwrap();
    file
}

fn content() -> Vec<u8> {
    (0..SECTORS * 512).map(|i| (i / 512) as u8 ^ i as u8).collect()
}

fn disk(file: &NamedTempFile, options: Options) -> Block {
    Block::open(file.path(), options).unwrap()
}

fn harness(file: &NamedTempFile, engine: EngineChoice) -> Harness {
    Harness::new(&mut disk(file, Options { engine, ..Options::default() }), feature::FLUSH)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Runs one request; returns what was written to its buffers, and the status.
fn request(harness: &mut Harness, readable: &[&[u8]], writable: &[u32]) -> (Vec<u8>, u8) {
    let head = harness.drivers[0].add(readable, writable);
    assert_eq!(harness.complete(0).0, head);
    let mut written = harness.drivers[0].written(head);
    let status = written.pop().unwrap();
    (written, status)
}

fn status(harness: &mut Harness, readable: &[&[u8]]) -> u8 {
    request(harness, readable, &[1]).1
}

#[test]
fn reads_into_scattered_buffers() {
    for engine in ENGINES {
        let file = image();
        let mut harness = harness(&file, engine);
        let (data, status) = request(&mut harness, &[&header(kind::IN, 3)], &[512, 100, 924, 1]);
        assert_eq!((status, &data[..]), (0, &content()[3 * 512..6 * 512]));
        // The status may share a buffer with the data, and the header may be in pieces.
        let header = header(kind::IN, 63);
        let (data, status) = request(&mut harness, &[&header[..3], &header[3..]], &[513]);
        assert_eq!((status, &data[..]), (0, &content()[63 * 512..]));
    }
}

#[test]
fn data_that_is_not_in_the_page_cache_arrives_too() {
    use std::os::fd::AsRawFd;
    for engine in ENGINES {
        let file = image();
        file.as_file().sync_all().unwrap();
        // SAFETY: takes no memory.
        let dropped = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(dropped, 0);
        let mut harness = harness(&file, engine);
        let (data, status) = request(&mut harness, &[&header(kind::IN, 0)], &[4096, 1]);
        assert_eq!((status, &data[..]), (0, &content()[..4096]));
    }
}

#[test]
fn writes_reach_the_file_and_nothing_else_changes() {
    for engine in ENGINES {
        let file = image();
        let mut harness = harness(&file, engine);
        let data = [7; 1536];
        let together = [header(kind::OUT, 10), data[..700].to_vec()].concat();
        assert_eq!(status(&mut harness, &[&together, &data[700..]]), 0);
        assert_eq!(status(&mut harness, &[&header(kind::FLUSH, 0)]), 0);
        let mut expected = content();
        expected[5120..6656].copy_from_slice(&data);
        assert_eq!(fs::read(file.path()).unwrap(), expected);
    }
}

#[test]
fn zeroed_ranges_read_as_zeroes() {
    for engine in ENGINES {
        for unmap in [0, 1] {
            let file = image();
            let mut harness = harness(&file, engine);
            assert_eq!(status(&mut harness, &[&header(kind::WRITE_ZEROES, 0), &range(8, 24, unmap)]), 0);
            let mut expected = content();
            expected[8 * 512..32 * 512].fill(0);
            assert_eq!(fs::read(file.path()).unwrap(), expected);
        }
    }
}

#[test]
fn discarded_ranges_give_space_back() {
    use std::os::unix::fs::MetadataExt;
    for engine in ENGINES {
        let file = image();
        file.as_file().sync_all().unwrap();
        let before = file.as_file().metadata().unwrap().blocks();
        let mut harness = harness(&file, engine);
        assert_eq!(status(&mut harness, &[&header(kind::DISCARD, 0), &range(0, 64, 0)]), 0);
        let after = file.as_file().metadata().unwrap();
        assert!(after.blocks() < before, "{} blocks, then {}", before, after.blocks());
        assert_eq!(after.len(), 64 * 512);
    }
}

#[test]
fn the_serial_number_is_told() {
    let file = image();
    let options = Options { serial: Some("data-1".into()), ..Options::default() };
    let mut harness = Harness::new(&mut disk(&file, options), 0);
    let (id, status) = request(&mut harness, &[&header(kind::GET_ID, 0)], &[20, 1]);
    assert_eq!((status, &id[..]), (0, &b"data-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]));
    let long = Options { serial: Some("x".repeat(21)), ..Options::default() };
    assert!(matches!(Block::open(file.path(), long), Err(OpenError::Serial { .. })));
}

#[test]
fn requests_beyond_the_disk_or_the_rules_fail() {
    let file = image();
    let mut harness = harness(&file, EngineChoice::Auto);
    let data = vec![1; 1024];
    for (readable, expected) in [
        (vec![header(kind::OUT, 63), data.clone()], 1),
        (vec![header(kind::OUT, u64::MAX), data.clone()], 1),
        (vec![header(kind::OUT, u64::MAX / 512), data.clone()], 1),
        (vec![header(kind::OUT, 0), data[..511].to_vec()], 1),
        (vec![header(kind::OUT, 0)[..15].to_vec()], 1),
        (vec![header(77, 0)], 2),
        (vec![header(kind::DISCARD, 0), range(60, 5, 0)], 1),
        (vec![header(kind::DISCARD, 0), range(0, 5, 1)], 2),
        (vec![header(kind::WRITE_ZEROES, 0), range(0, 5, 2)], 2),
        (vec![header(kind::WRITE_ZEROES, 0), range(u64::MAX, 1, 0)], 1),
        (vec![header(kind::WRITE_ZEROES, 0), range(0, 1, 0), range(1, 1, 0)], 1),
        (vec![header(kind::WRITE_ZEROES, 0)], 1),
        (vec![header(kind::OUT, 0)], 0),
    ] {
        let readable: Vec<&[u8]> = readable.iter().map(Vec::as_slice).collect();
        assert_eq!(status(&mut harness, &readable), expected, "{readable:?}");
    }
    assert_eq!(request(&mut harness, &[&header(kind::IN, 64)], &[512, 1]).1, 1);
    assert_eq!(request(&mut harness, &[&header(kind::IN, 0)], &[511, 1]).1, 1);
    assert_eq!(fs::read(file.path()).unwrap(), content());
}

#[test]
fn chains_without_room_for_a_status_come_back_empty() {
    let file = image();
    let mut harness = harness(&file, EngineChoice::Auto);
    let head = harness.drivers[0].add(&[&header(kind::FLUSH, 0)], &[]);
    assert_eq!(harness.complete(0), (head, 0));
    harness.drivers[0].set_descriptor(9, u64::MAX - 4, 16, descriptor::WRITE, 0);
    harness.drivers[0].make_available(9);
    assert_eq!(harness.complete(0), (9, 0));
}

#[test]
fn read_only_disks_refuse_all_that_writes() {
    let file = image();
    let options = Options { read_only: true, ..Options::default() };
    let mut block = disk(&file, options);
    assert_ne!(block.features() & feature::RO, 0);
    let mut harness = Harness::new(&mut block, feature::FLUSH);
    assert_eq!(status(&mut harness, &[&header(kind::OUT, 0), &[1; 512]]), 1);
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        assert_eq!(status(&mut harness, &[&header(kind, 0), &range(0, 1, 0)]), 1);
    }
    assert_eq!(request(&mut harness, &[&header(kind::IN, 0)], &[512, 1]).1, 0);
    assert_eq!(fs::read(file.path()).unwrap(), content());
}

#[test]
fn many_requests_are_under_way_at_once() {
    for engine in ENGINES {
        let file = image();
        let mut harness = harness(&file, engine);
        let mut expected = content();
        let mut heads = Vec::new();
        for i in 0..60 {
            let data = [i as u8; 512];
            expected[i * 512..][..512].copy_from_slice(&data);
            heads.push(harness.drivers[0].add_indirect(&[&header(kind::OUT, i as u64), &data], &[1]));
        }
        let mut done: Vec<u16> = heads.iter().map(|_| harness.complete(0).0).collect();
        done.sort_unstable();
        heads.sort_unstable();
        assert_eq!(done, heads);
        assert_eq!(fs::read(file.path()).unwrap(), expected);
    }
}

#[test]
fn stopping_waits_for_what_is_under_way() {
    for engine in ENGINES {
        let file = image();
        let mut harness = harness(&file, engine);
        for i in 0..40 {
            harness.drivers[0].add(&[&header(kind::OUT, i), &[9; 512]], &[1]);
        }
        harness.kick(0);
        harness.run(1000);
        assert_eq!(harness.stop().len(), 1);
        assert!(fs::read(file.path()).unwrap()[..40 * 512].iter().all(|&byte| byte == 9));
    }
}

#[test]
fn a_file_that_has_become_shorter_gives_errors_that_are_told() {
    for engine in ENGINES {
        let file = image();
        let faults = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&faults);
        let options = Options {
            engine,
            faults: Some(Arc::new(move |fault| heard.lock().unwrap().push(fault.to_string()))),
            ..Options::default()
        };
        let mut harness = Harness::new(&mut disk(&file, options), feature::FLUSH);
        file.as_file().set_len(1024).unwrap();
        assert_eq!(request(&mut harness, &[&header(kind::IN, 1)], &[1024, 1]).1, 1);
        assert_eq!(*faults.lock().unwrap(), ["read at byte 1024 failed"]);
    }
}

#[test]
fn files_that_are_no_disks_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let open = |name: &str, read_only| {
        Block::open(&directory.path().join(name), Options { read_only, ..Options::default() }).map(|_| ())
    };
    assert!(matches!(open("", true), Err(OpenError::NotADisk { what: "a directory", .. })));
    assert!(matches!(open("missing", true), Err(OpenError::Open { .. })));
    fs::write(directory.path().join("small"), [0; 511]).unwrap();
    assert!(matches!(open("small", false), Err(OpenError::Empty { bytes: 511, .. })));
    assert!(matches!(
        Block::open(Path::new("/dev/null"), Options::default()).map(|_| ()),
        Err(OpenError::NotADisk { .. })
    ));
}

#[test]
fn one_writer_or_many_readers() {
    let file = image();
    let open = |read_only| Block::open(file.path(), Options { read_only, ..Options::default() });
    let writer = open(false).unwrap();
    assert!(matches!(open(true), Err(OpenError::Locked { .. })));
    assert!(matches!(open(false), Err(OpenError::Locked { .. })));
    drop(writer);
    let _readers = [open(true).unwrap(), open(true).unwrap()];
    assert!(matches!(open(false), Err(OpenError::Locked { .. })));
}

#[test]
fn the_configuration_space_tells_size_and_limits() {
    let file = image();
    let block = disk(&file, Options::default());
    let mut capacity = [0; 8];
    block.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS as u64);
    let mut beyond = [1; 4];
    block.read_config(1 << 40, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a driver asks for, each request comes back once, and the file is as a model says.
    #[test]
    fn any_sequence_of_requests_keeps_to_the_model(
        requests in prop::collection::vec((0u32..15, 0u64..70, 0usize..6, any::<u8>()), 1..30),
        threads in any::<bool>(),
    ) {
        let engine = if threads { EngineChoice::Threads } else { EngineChoice::Auto };
        let file = image();
        let mut harness = harness(&file, engine);
        let mut model = content();
        for (kind, sector, sectors, fill) in requests {
            let data = vec![fill; sectors * 512];
            let at = sector as usize * 512;
            let fits = sector as usize + sectors <= SECTORS;
            let segment = range(sector, sectors as u32, 0);
            let header = header(kind, sector);
            let (readable, writable): (Vec<&[u8]>, Vec<u32>) = match kind {
                kind::OUT if sectors > 0 => (vec![&header, &data], vec![1]),
                kind::DISCARD | kind::WRITE_ZEROES => (vec![&header, &segment], vec![1]),
                _ => (vec![&header], vec![sectors as u32 * 512 + 1]),
            };
            let (read, status) = request(&mut harness, &readable, &writable);
            match kind {
                kind::IN if fits => prop_assert_eq!((status, &read[..]), (0, &model[at..at + data.len()])),
                kind::OUT if fits => {
                    prop_assert_eq!(status, 0);
                    model[at..at + data.len()].copy_from_slice(&data);
                }
                kind::DISCARD | kind::WRITE_ZEROES if fits => {
                    prop_assert_eq!(status, 0);
                    model[at..at + data.len()].fill(0);
                }
                kind::FLUSH | kind::GET_ID => prop_assert_eq!(status, 0),
                kind::IN | kind::OUT | kind::DISCARD | kind::WRITE_ZEROES => prop_assert_eq!(status, 1),
                _ => prop_assert_eq!(status, 2),
            }
        }
        drop(harness);
        prop_assert_eq!(fs::read(file.path()).unwrap(), model);
    }
}
