//! How guests end, and how that is told.

use vmm_e2e::{Kernel, LIMIT, lab};
use vmm_harness::Exit;
use vmm_harness::host::Event;

const SIGTERM: i32 = 15;

#[test]
fn a_reboot_ends_the_guest_well() {
    for kernel in [Kernel::Tuned, Kernel::Stock] {
        let ended = lab().guest(kernel, &[], "reboot; sleep 100");
        assert_eq!(
            (ended.status(), &ended.record["outcome"]),
            (0, &"reset".into()),
            "{}",
            ended.output.text()
        );
    }
}

#[test]
fn a_panic_is_told_with_its_reason_and_a_hint() {
    for kernel in [Kernel::Tuned, Kernel::Stock] {
        let ended =
            lab().boot(&["--kernel", kernel.name(), "--rootfs", "root.erofs", "--cmdline", "init=/none"]);
        assert_eq!(
            (ended.status(), &ended.record["outcome"]),
            (1, &"panicked".into()),
            "{}",
            ended.output.text()
        );
        assert!(ended.stderr().contains("vmm: the guest's kernel panicked"), "{}", ended.output.text());
        assert!(ended.stderr().contains("hint: "), "{}", ended.output.text());
        // In the stock kernel's first root, the project's init finds out that there is no such program.
        let stage = if kernel == Kernel::Tuned { "guest-kernel" } else { "user-space" };
        assert_eq!(ended.record["stage"], stage, "{:#}", ended.record);
    }
}

#[test]
fn a_guest_without_a_root_panics_with_a_hint() {
    lab().must("truncate -s 1M not-a-root.img");
    let ended = lab().boot(&["--kernel", "tuned", "--rootfs", "not-a-root.img"]);
    assert_eq!(ended.status(), 1, "{}", ended.output.text());
    assert!(ended.stderr().contains("cannot mount its root"), "{}", ended.output.text());
}

#[test]
fn sigterm_presses_the_power_button() {
    for kernel in [Kernel::Tuned, Kernel::Stock] {
        let arguments = [
            "boot",
            "--kernel",
            kernel.name(),
            "--rootfs",
            "root.erofs",
            "--cmdline",
            "-- \"echo up; sleep 1000\"",
        ];
        let mut running = lab().start(&arguments, None);
        let mut seen = String::new();
        while !seen.contains("up") {
            match running.next(Some(std::time::Instant::now() + LIMIT)).unwrap() {
                Some(Event::Stdout(data) | Event::Stderr(data)) => seen += &String::from_utf8_lossy(&data),
                other => panic!("{other:?} after {seen:?}"),
            }
        }
        running.input().signal(SIGTERM).unwrap();
        let output = running.finish(LIMIT).unwrap();
        assert_eq!(output.exit, Exit::Code(0), "{kernel:?}\n{}", output.text());
    }
}

#[test]
fn a_guest_whose_time_is_up_is_shut_down() {
    let ended = lab().guest(Kernel::Tuned, &["--timeout", "15s"], "sleep 1000");
    assert_eq!(ended.status(), 124, "{}", ended.output.text());
    assert!(ended.stderr().contains("its time was up"), "{}", ended.output.text());
}

#[test]
fn a_killed_monitor_leaves_nothing() {
    let script = r#"
        ls -A /tmp /dev/shm /run home | sort > before
        ./vmm boot --rootfs root.erofs --cmdline '-- "echo up; sleep 1000"' > killed.out 2>&1 < /dev/null &
        pid=$!
        tail -f --pid=$pid killed.out | grep -q -m1 up
        kill -9 $pid; wait $pid
        echo status $?
        ls -A /tmp /dev/shm /run home | sort > after
        diff before after && echo nothing left
        test -d /proc/$pid || echo gone
    "#;
    let output = lab().sh(script);
    for expected in ["status 137", "nothing left", "gone"] {
        assert!(output.stdout.contains(expected), "no {expected:?}\n{}", output.text());
    }
}
