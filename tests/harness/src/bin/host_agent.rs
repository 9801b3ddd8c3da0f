//! The first program of the emulated host. It is of no use elsewhere.

fn main() {
    if std::process::id() != 1 {
        eprintln!("host-agent: this is the first process of the emulated host; `cargo kvm-host` starts it");
        std::process::exit(125);
    }
    vmm_harness::agent::init::run()
}
