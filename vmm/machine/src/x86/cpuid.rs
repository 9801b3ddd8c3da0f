//! What the CPUID instruction tells a guest (Intel SDM volume 2, CPUID; KVM `Documentation/virt/kvm/x86/cpuid.rst`).

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the count of logical processors in EBX is valid.
const HTT: u32 = 1 << 28;

/// Level types of the topology leaves.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Completes what KVM supports for vCPU `index` of `count`: one package of `count` cores with one thread each.
///
/// `tsc_deadline` says whether KVM's local APIC has the deadline timer, which it does not always say in the
/// leaves themselves.
pub fn complete(cpuid: &mut CpuId, index: u8, count: u8, tsc_deadline: bool) {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => features(entry, index, count, tsc_deadline),
            0x4 => caches(entry, count),
            // Performance counters are not virtualised: none must be seen.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0xb | 0x1f => topology(entry, index, count),
            // The processor's name, which KVM leaves out.
            0x8000_0002..=0x8000_0004 => {
                let host = __cpuid(entry.function);
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (host.eax, host.ebx, host.ecx, host.edx);
            }
            // Amount of cores, less one, and the size of the core id in bits (AMD).
            0x8000_0008 => {
                entry.ecx = (entry.ecx & !0xf0ff) | (core_id_bits(count) << 12) | (u32::from(count) - 1);
            }
            // Extended APIC id, one thread per core, one node (AMD).
            0x8000_001e => {
                entry.eax = u32::from(index);
                entry.ebx = u32::from(index);
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

fn features(entry: &mut kvm_cpuid_entry2, index: u8, count: u8, tsc_deadline: bool) {
    // The cache line size in bits 8..16 is the host's; ids and counts are ours.
    entry.ebx = (entry.ebx & 0xff00) | (u32::from(index) << 24) | (u32::from(count) << 16);
    entry.ecx |= HYPERVISOR | X2APIC;
    if tsc_deadline {
        entry.ecx |= TSC_DEADLINE;
    }
    if count > 1 {
        entry.edx |= HTT;
    } else {
        entry.edx &= !HTT;
    }
}

/// Leaf 4 (Intel): how many processors share each cache, and how many cores the package has.
fn caches(entry: &mut kvm_cpuid_entry2, count: u8) {
    let (kind, level) = (entry.eax & 0x1f, (entry.eax >> 5) & 7);
    if kind == 0 {
        return;
    }
    let sharing = if level >= 3 { u32::from(count) - 1 } else { 0 };
    entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | ((u32::from(count) - 1) << 26);
}

/// Leaves 0xb and 0x1f: a level of threads, a level of cores, and the end.
fn topology(entry: &mut kvm_cpuid_entry2, index: u8, count: u8) {
    entry.edx = u32::from(index);
    let (shift, logical, level) = match entry.index {
        0 => (0, 1, LEVEL_THREAD),
        1 => (core_id_bits(count), u32::from(count), LEVEL_CORE),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = logical;
    entry.ecx = (level << 8) | entry.index;
}

fn core_id_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ..Default::default() }
    }

    fn completed(entries: &[kvm_cpuid_entry2], index: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        let mut cpuid = CpuId::from_entries(entries).unwrap();
        complete(&mut cpuid, index, count, true);
        cpuid.as_slice().to_vec()
    }

    #[test]
    fn every_vcpu_has_its_own_id() {
        let leaves = completed(&[leaf(1, 0, 0), leaf(0xb, 0, 9), leaf(0xb, 1, 9)], 3, 4);
        assert_eq!(leaves[0].ebx, 0x0304_0000);
        assert_eq!(leaves[0].ecx, HYPERVISOR | X2APIC | TSC_DEADLINE);
        assert_eq!(leaves[0].edx, HTT);
        assert_eq!((leaves[1].eax, leaves[1].ebx, leaves[1].ecx, leaves[1].edx), (0, 1, 0x100, 3));
        assert_eq!((leaves[2].eax, leaves[2].ebx, leaves[2].ecx, leaves[2].edx), (2, 4, 0x201, 3));
    }

    #[test]
    fn one_vcpu_is_one_thread() {
        let leaves = completed(&[leaf(1, 0, 0), leaf(0x8000_0008, 0, 0)], 0, 1);
        assert_eq!(leaves[0].edx & HTT, 0);
        assert_eq!(leaves[1].ecx, 0);
    }

    #[test]
    fn the_processor_has_its_name() {
        let leaves = completed(&[leaf(0x8000_0002, 0, 0)], 0, 1);
        assert_eq!(leaves[0].eax, __cpuid(0x8000_0002).eax);
    }

    #[test]
    fn first_and_second_level_caches_are_not_shared() {
        let leaves = completed(&[leaf(4, 0, 0x121), leaf(4, 3, 0x163), leaf(4, 4, 0)], 0, 6);
        assert_eq!(leaves[0].eax, 0x121 | 5 << 26);
        assert_eq!(leaves[1].eax, 0x163 | 5 << 14 | 5 << 26);
        assert_eq!(leaves[2].eax, 0);
    }
}
