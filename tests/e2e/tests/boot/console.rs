//! The console, both ways.

use std::time::Instant;

use vmm_e2e::{Kernel, LIMIT, lab};
use vmm_harness::host::{Event, Running};
use vmm_harness::{Exit, WindowSize};

/// A guest's shell as its user sees it.
struct Session {
    running: Running,
    seen: String,
}

impl Session {
    fn start(kernel: Kernel, options: &[&str], terminal: Option<WindowSize>) -> Self {
        let mut arguments = vec!["boot", "--kernel", kernel.name(), "--rootfs", "root.erofs"];
        arguments.extend(options);
        Self { running: lab().start(&arguments, terminal), seen: String::new() }
    }

    /// Waits until the guest has said `text`, and forgets everything up to there.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.running.next(Some(deadline)).unwrap() {
                Some(Event::Stdout(data) | Event::Stderr(data)) => {
                    self.seen.push_str(&String::from_utf8_lossy(&data));
                }
                Some(Event::Exited(exit)) => panic!("{exit:?} before {text:?}; after {:?}", self.seen),
                None => panic!("no {text:?} in time; only {:?}", self.seen),
            }
        }
    }

    fn enter(&self, line: &str) {
        self.running.input().write(format!("{line}\n").as_bytes()).unwrap();
    }

    #[track_caller]
    fn end(mut self) -> Exit {
        self.running.finish(LIMIT).unwrap().exit
    }
}

#[test]
fn a_shell_answers_on_both_consoles() {
    for (kernel, console, device) in [
        (Kernel::Tuned, "virtio", "hvc0"),
        (Kernel::Tuned, "serial", "ttyS0"),
        (Kernel::Stock, "serial", "ttyS0"),
    ] {
        let mut session = Session::start(kernel, &["--console", console], None);
        session.wait_for("# ");
        session.enter("echo answer-$((6 * 7))");
        session.wait_for("answer-42");
        session.enter("echo on-$(cat /sys/class/tty/console/active)");
        session.wait_for(&format!("on-{device}"));
        session.enter("exit");
        assert_eq!(session.end(), Exit::Code(0), "{kernel:?} {console}");
    }
}

#[test]
fn much_input_arrives_whole() {
    let mut session = Session::start(Kernel::Tuned, &["--console", "virtio"], None);
    session.wait_for("# ");
    session.enter("stty -echo; echo re''ady; cat > /tmp/got; echo sum $(wc -c < /tmp/got)");
    session.wait_for("ready");
    let lines = "a line of thirty-one characters\n".repeat(2000);
    session.running.input().write(lines.as_bytes()).unwrap();
    session.running.input().write(b"\x04").unwrap();
    session.wait_for(&format!("sum {}", lines.len()));
    session.enter("exit");
    assert_eq!(session.end(), Exit::Code(0));
}

#[test]
fn the_guest_knows_the_size_of_the_terminal() {
    let size = WindowSize { rows: 33, columns: 101 };
    let mut session = Session::start(Kernel::Tuned, &["--console", "virtio"], Some(size));
    session.wait_for("# ");
    session.enter("echo size=$(stty size)");
    session.wait_for("size=33 101");
    session.running.input().resize(WindowSize { rows: 44, columns: 120 }).unwrap();
    session.enter("sleep 1; echo size=$(stty size)");
    session.wait_for("size=44 120");
    session.enter("exit");
    assert_eq!(session.end(), Exit::Code(0));
}

#[test]
fn output_that_nobody_reads_does_not_stop_the_guest() {
    // The reader of this pipe sleeps; the guest has to power off all the same.
    let output = lab().sh(
        "./vmm boot --rootfs root.erofs --timeout 60s --cmdline '-- \"yes | head -n 300000\"' 2>err | { sleep 20; wc -l; }; \
         cat err",
    );
    assert!(output.exit.success(), "{}", output.text());
}
