//! Bad input: one clear line, one hint at most, status 125, and nothing on standard output.

use vmm_e2e::lab;
use vmm_harness::host::Output;

#[track_caller]
fn refused(output: &Output, because: &str) {
    assert_eq!(output.exit.code(), 125, "{}", output.text());
    assert_eq!(output.stdout, "", "{}", output.text());
    let lines: Vec<&str> = output.stderr.lines().collect();
    let fits = match lines.as_slice() {
        [error] => error.starts_with("vmm: "),
        [error, hint] => error.starts_with("vmm: ") && hint.starts_with("hint: "),
        _ => false,
    };
    assert!(fits && output.stderr.contains(because), "expected {because:?}\n{}", output.text());
}

#[track_caller]
fn kernel_refused(kernel: &str, because: &str) {
    refused(&lab().vmm(&["boot", "--kernel", kernel, "--rootfs", "root.erofs"]), because);
}

#[test]
fn a_kernel_that_is_none() {
    lab().must(
        "mkdir -p kernel.dir; : > kernel.empty; head -c 100000 /dev/urandom > kernel.random; \
         head -c 300000 home/kernels/stock/vmlinuz > kernel.short; \
         head -c 3000000 home/kernels/tuned/vmlinux > kernel.cut; \
         cp /bin/true kernel.program; \
         { head -c 18 /bin/true; printf '\\267\\000'; tail -c +21 /bin/true; } > kernel.arm",
    );
    for (kernel, because) in [
        ("kernel.none", "kernel.none"),
        ("./kernel.none", "kernel.none"),
        ("./kernel.dir", "directory"),
        ("./kernel.empty", "empty"),
        ("./kernel.random", "kernel.random"),
        ("./kernel.short", "kernel.short"),
        ("./kernel.cut", "kernel.cut"),
        ("./kernel.program", "kernel.program"),
        ("./kernel.arm", "kernel.arm"),
    ] {
        kernel_refused(kernel, because);
    }
}

#[test]
fn a_kernel_larger_than_the_memory() {
    let boot = ["boot", "--rootfs", "root.erofs", "--kernel", "stock", "--memory", "32M"];
    refused(&lab().vmm(&boot), "memory");
}

#[test]
fn a_root_that_is_none() {
    lab().must(": > root.empty; mkdir -p root.dir");
    for (root, because) in
        [("missing.img", "missing.img"), ("root.empty", "root.empty"), ("root.dir", "root.dir")]
    {
        refused(&lab().vmm(&["boot", "--rootfs", root]), because);
    }
    refused(&lab().vmm(&["boot"]), "nothing to boot into");
}

#[test]
fn a_machine_that_cannot_be() {
    for (options, because) in [
        (["--memory", "0"], "memory"),
        (["--memory", "1000G"], "memory"),
        (["--memory", "lots"], "lots"),
        (["--cpus", "0"], "CPUs"),
        (["--cpus", "33"], "32"),
        (["--cpus", "1000"], "1000"),
        (["--disk", "none.img"], "none.img"),
        (["--disk", "/proc/version"], "/proc/version"),
    ] {
        let output = lab().vmm(&["boot", "--rootfs", "root.erofs", options[0], options[1]]);
        assert_eq!(output.exit.code(), 125, "{}", output.text());
        assert!(output.stderr.contains(because), "expected {because:?}\n{}", output.text());
        assert!(!output.stderr.contains("panicked"), "{}", output.text());
    }
}

#[test]
fn a_command_line_that_is_too_long() {
    let words = "x".repeat(5000);
    refused(&lab().vmm(&["boot", "--rootfs", "root.erofs", "--cmdline", &words]), "command line");
}

#[test]
fn a_disk_that_cannot_be_written() {
    let output =
        lab().sh("truncate -s 1M locked.img; chmod 444 locked.img; chmod 666 /dev/kvm; chmod 755 .; \
         setpriv --reuid=65534 --clear-groups env HOME=/tmp ./vmm boot --kernel ./home/kernels/tuned/vmlinux \
         --rootfs root.erofs --disk locked.img");
    refused(&output, "locked.img");
}

#[test]
fn no_kvm_and_no_permission() {
    let without =
        lab().sh("unshare --mount sh -c 'mount -t tmpfs none /dev && ./vmm boot --rootfs root.erofs'");
    refused(&without, "/dev/kvm");
    let forbidden = lab().sh(
        "cp -p vmm /tmp/vmm-copy; unshare --mount sh -c 'cp -a /dev/kvm /tmp/kvm-copy; chmod 600 /tmp/kvm-copy; \
         mount --bind /tmp/kvm-copy /dev/kvm; setpriv --reuid=65534 --clear-groups env HOME=/tmp VMM_HOME= \
         ./vmm boot --kernel ./home/kernels/tuned/vmlinux --rootfs root.erofs'; status=$?; \
         rm -f /tmp/kvm-copy /tmp/vmm-copy; exit $status",
    );
    refused(&forbidden, "Permission denied");
}
