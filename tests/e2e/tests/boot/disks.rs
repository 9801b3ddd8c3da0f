//! Disks: what one side writes, the other side reads.

use vmm_e2e::{Kernel, lab};

#[test]
fn what_the_guest_writes_is_on_the_host_after_power_off() {
    for kernel in [Kernel::Tuned, Kernel::Stock] {
        let disk = format!("written-{}.img", kernel.name());
        lab().must(&format!("truncate -s 64M {disk}"));
        let ended = lab().guest(
            kernel,
            &["--disk", &format!("{disk},serial=scratch")],
            "cat /sys/block/vdb/serial; echo; dd if=/dev/urandom of=/dev/vdb bs=1M count=64 2>/dev/null; sync; \
             echo 3 > /proc/sys/vm/drop_caches; echo sum $(sha256sum < /dev/vdb | cut -c1-64)",
        );
        ended.expect_power_off();
        assert!(ended.stdout().contains("scratch"), "{}", ended.output.text());
        let here = lab().must(&format!("sha256sum < {disk} | cut -c1-64; rm {disk}"));
        assert_eq!(ended.line("sum"), here);
    }
}

#[test]
fn what_the_host_wrote_is_read_by_the_guest_and_cannot_be_changed_if_read_only() {
    lab().must("dd if=/dev/urandom of=given.img bs=1M count=16 2>/dev/null");
    let before = lab().must("sha256sum < given.img | cut -c1-64");
    let ended = lab().guest(
        Kernel::Tuned,
        &["--disk", "given.img:ro"],
        "echo sum $(sha256sum < /dev/vdb | cut -c1-64); cat /sys/block/vdb/ro; dd if=/dev/zero of=/dev/vdb count=1 2>&1; sync; echo end",
    );
    ended.expect_power_off();
    assert_eq!(ended.line("sum"), before);
    assert!(ended.stdout().contains("end"), "{}", ended.output.text());
    assert_eq!(lab().must("sha256sum < given.img | cut -c1-64; rm given.img"), before);
}

#[test]
fn eight_disks_keep_their_order_and_their_names() {
    let names: Vec<String> = (1..=8).map(|number| format!("disk{number}")).collect();
    let mut options = Vec::new();
    for (index, name) in names.iter().enumerate() {
        lab().must(&format!("truncate -s {}M {name}.img", index + 1));
        options.extend(["--disk".to_owned(), format!("{name}.img,serial={name}")]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let ended = lab().guest(
        Kernel::Tuned,
        &options,
        "for d in b c d e f g h i; do echo vd$d $(cat /sys/block/vd$d/serial) $(cat /sys/block/vd$d/size); done",
    );
    ended.expect_power_off();
    for (index, name) in names.iter().enumerate() {
        let device = format!("vd{}", char::from(b'b' + index as u8));
        assert_eq!(ended.line(&device), format!("{name} {}", (index + 1) * 2048));
    }
    lab().must("rm disk?.img");
}

#[test]
fn a_writable_root_keeps_what_was_written() {
    lab().must("cp --sparse=always root.ext4 kept.ext4");
    let script = "cat /root/note 2>/dev/null; echo kept > /root/note";
    let first = lab().guest(Kernel::Tuned, &["--rootfs", "kept.ext4"], script);
    first.expect_power_off();
    assert!(!first.stdout().contains("kept"), "{}", first.output.text());
    let second = lab().guest(Kernel::Stock, &["--rootfs", "kept.ext4"], script);
    second.expect_power_off();
    assert!(second.stdout().contains("kept"), "{}", second.output.text());
    lab().must("e2fsck -fn kept.ext4 && rm kept.ext4");
}

#[test]
fn a_full_disk_on_the_host_is_an_error_in_the_guest_and_nothing_more() {
    lab().must("mkdir small && mount -t tmpfs -o size=8M small small && truncate -s 64M small/disk.img");
    let ended = lab().guest(
        Kernel::Tuned,
        &["--disk", "small/disk.img"],
        "dd if=/dev/zero of=/dev/vdb bs=1M count=32 conv=fsync 2>&1; echo alive",
    );
    lab().must("umount small && rmdir small");
    assert_eq!(
        (ended.status(), &ended.record["outcome"]),
        (0, &"power-off".into()),
        "{}",
        ended.output.text()
    );
    assert!(
        ended.stderr().contains("small/disk.img"),
        "the user is told which disk\n{}",
        ended.output.text()
    );
    assert!(ended.stdout().contains("alive"), "{}", ended.output.text());
    let failed = ended.stdout().contains("Input/output error") || ended.stdout().contains("No space left");
    assert!(failed, "{}", ended.output.text());
}

#[test]
fn blocks_that_the_guest_discards_are_given_back() {
    lab().must("dd if=/dev/urandom of=discarded.img bs=1M count=32 2>/dev/null");
    let ended =
        lab().guest(Kernel::Tuned, &["--disk", "discarded.img"], "blkdiscard /dev/vdb && echo discarded");
    ended.expect_power_off();
    assert!(ended.stdout().contains("discarded"), "{}", ended.output.text());
    let kib: u64 = lab().must("du -k discarded.img | cut -f1; rm discarded.img").parse().unwrap();
    assert!(kib < 1024, "{kib} KiB are still taken");
}
