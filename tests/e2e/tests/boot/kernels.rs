//! Which kernels boot, by which protocols, into which machines.

use vmm_e2e::{Ended, Kernel, lab};

/// Boots, and checks that the guest is the machine that was asked for.
#[track_caller]
fn boots(kernel: Kernel, options: &[&str]) -> Ended {
    let ended = lab().guest(
        kernel,
        options,
        "echo release $(uname -r); echo cpus $(nproc); grep MemTotal /proc/meminfo; echo clock \
         $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource); cat /proc/mounts",
    );
    if options.contains(&"--no-acpi") {
        // Only ACPI has a way to power off; the guest's init resets the machine instead.
        assert_eq!(
            (ended.status(), &ended.record["outcome"]),
            (0, &"reset".into()),
            "{}",
            ended.output.text()
        );
    } else {
        ended.expect_power_off();
    }
    assert_eq!(ended.line("clock"), "kvm-clock");
    let reached = ended.record["timings"]
        .as_array()
        .is_some_and(|timings| timings.iter().any(|timing| timing["stage"] == "user-space"));
    assert!(reached, "{:#}", ended.record);
    ended
}

/// The memory that the guest's kernel counts, in MiB.
fn memory_mib(ended: &Ended) -> u64 {
    let kib = ended.line("MemTotal:").trim_end_matches(" kB");
    kib.parse::<u64>().unwrap_or_else(|error| panic!("{kib:?}: {error}")) >> 10
}

#[test]
fn tuned_by_pvh() {
    let ended = boots(Kernel::Tuned, &["--protocol", "pvh"]);
    assert!(ended.line("release").ends_with("-vmm"));
}

#[test]
fn tuned_by_the_64_bit_protocol() {
    boots(Kernel::Tuned, &["--protocol", "linux64"]);
}

#[test]
fn tuned_without_acpi() {
    let ended = boots(Kernel::Tuned, &["--no-acpi", "--cpus", "2"]);
    assert_eq!(ended.line("cpus"), "2");
}

#[test]
fn stock_by_pvh() {
    let ended = boots(Kernel::Stock, &["--protocol", "pvh"]);
    assert!(ended.line("release").contains("cloud"));
}

#[test]
fn stock_by_the_64_bit_protocol() {
    boots(Kernel::Stock, &["--protocol", "linux64"]);
}

#[test]
fn an_unpacked_kernel_boots_as_its_image_does() {
    // What unpacking the stock kernel's bzImage has left in the cache is its vmlinux.
    boots(Kernel::Stock, &[]);
    let vmlinux = lab().must("ls home/cache/*.vmlinux | head -n1");
    let ended = lab().boot(&[
        "--kernel",
        &vmlinux,
        "--modules",
        "home/kernels/stock/modules",
        "--rootfs",
        "root.erofs",
        "--cmdline",
        "-- uname -r",
    ]);
    ended.expect_power_off();
    assert!(ended.stdout().contains("cloud"), "{}", ended.stdout());
}

#[test]
fn four_processors_are_all_used() {
    for kernel in [Kernel::Tuned, Kernel::Stock] {
        let ended = lab().guest(
            kernel,
            &["--cpus", "4"],
            "for i in 0 1 2 3; do taskset -c $i sh -c 'echo ran $(cut -d\\  -f39 /proc/self/stat)'; done",
        );
        ended.expect_power_off();
        for cpu in 0..4 {
            assert!(ended.stdout().contains(&format!("ran {cpu}")), "{}", ended.output.text());
        }
    }
}

#[test]
fn a_guest_of_64_mib() {
    let ended = boots(Kernel::Tuned, &["--memory", "64M"]);
    assert!((40..64).contains(&memory_mib(&ended)), "{}", memory_mib(&ended));
}

#[test]
fn a_guest_of_512_mib() {
    let ended = boots(Kernel::Stock, &["--memory", "512M", "--cpus", "2"]);
    assert!((440..512).contains(&memory_mib(&ended)), "{}", memory_mib(&ended));
}

#[test]
fn a_guest_of_5_gib_uses_memory_above_the_gap() {
    let ended = lab().guest(
        Kernel::Tuned,
        &["--memory", "5G"],
        "grep MemTotal /proc/meminfo; dd if=/dev/urandom of=/tmp/a bs=1M count=64 2>/dev/null; cp /tmp/a /tmp/b; \
         cmp /tmp/a /tmp/b && echo same; grep -A1 Normal /proc/zoneinfo | head -n2",
    );
    ended.expect_power_off();
    assert!((4900..5120).contains(&memory_mib(&ended)), "{}", memory_mib(&ended));
    assert!(ended.stdout().contains("same"), "{}", ended.output.text());
}

#[test]
fn every_root_file_system_is_mounted_by_every_kernel() {
    for kernel in [Kernel::Tuned, Kernel::Stock] {
        for file_system in ["ext4", "erofs", "squashfs"] {
            let root = format!("root.{file_system}:ro");
            let ended = boots(kernel, &["--rootfs", &root]);
            let mounted = format!("/ {file_system} ro");
            assert!(ended.stdout().contains(&mounted), "{kernel:?} {file_system}\n{}", ended.output.text());
        }
    }
}

#[test]
fn the_tables_and_the_command_line_are_shown_without_a_start() {
    let shown =
        lab().vmm(&["boot", "--rootfs", "root.erofs", "--cpus", "3", "--dry-run", "--format", "json"]);
    assert!(shown.exit.success(), "{}", shown.text());
    let machine: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(machine["cpus"], 3);
    assert!(machine["cmdline"].as_str().unwrap().contains("root=/dev/vda ro"), "{machine:#}");
}
