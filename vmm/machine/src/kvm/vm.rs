//! The hypervisor and a virtual machine on it.

use std::io;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_devices::Memory;
use vmm_sys_util::eventfd::EventFd;

use super::{KvmError, Vcpu, ioctl};
use crate::layout;

const DEVICE: &str = "/dev/kvm";

/// What the monitor cannot do without.
const REQUIRED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The host's KVM.
pub struct Hypervisor {
    kvm: Kvm,
}

impl Hypervisor {
    /// Opens `/dev/kvm` and checks that it can do what the monitor needs.
    pub fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(|error| KvmError::Open {
            path: DEVICE,
            source: io::Error::from_raw_os_error(error.errno()),
        })?;
        if kvm.get_api_version() != KVM_API_VERSION as i32 {
            return Err(KvmError::Missing { capability: "API version 12" });
        }
        for (capability, name) in REQUIRED {
            if !kvm.check_extension(capability) {
                return Err(KvmError::Missing { capability: name });
            }
        }
        Ok(Self { kvm })
    }

    /// The CPUID leaves that this host's KVM can offer a guest.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))
    }

    /// Whether KVM's local APIC has the deadline timer.
    pub fn has_tsc_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// How many vCPUs a machine can have at most.
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// A machine with `memory` and nothing else.
    pub fn create_vm(&self, memory: Memory) -> Result<Vm, KvmError> {
        let fd = self.kvm.create_vm().map_err(ioctl("KVM_CREATE_VM"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping outlives the machine, which holds `memory`; slots do not overlap.
            unsafe { fd.set_user_memory_region(region) }.map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(Vm { fd, memory })
    }
}

/// A virtual machine.
pub struct Vm {
    fd: VmFd,
    memory: Memory,
}

impl Vm {
    /// The machine's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Adds the interrupt controllers (two PICs, an I/O APIC, a local APIC per vCPU) and the timer, all in
    /// the kernel. Comes before the first vCPU.
    pub fn create_irqchip(&self) -> Result<(), KvmError> {
        self.fd.set_tss_address(layout::KVM_TSS as usize).map_err(ioctl("KVM_SET_TSS_ADDR"))?;
        self.fd
            .set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
        self.fd.create_irq_chip().map_err(ioctl("KVM_CREATE_IRQCHIP"))?;
        // Without the dummy, every access to port 0x61 during calibration would be an exit.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(pit).map_err(ioctl("KVM_CREATE_PIT2"))
    }

    /// Adds a vCPU.
    pub fn create_vcpu(&self, index: u8) -> Result<Vcpu, KvmError> {
        let fd = self.fd.create_vcpu(u64::from(index)).map_err(ioctl("KVM_CREATE_VCPU"))?;
        Ok(Vcpu::new(index, fd))
    }

    /// Lets `event` raise interrupt line `gsi`.
    pub fn bind_interrupt(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, gsi).map_err(ioctl("KVM_IRQFD"))
    }

    /// Lets a 4-byte write of `value` at guest address `address` signal `event` without an exit.
    pub fn bind_doorbell(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd.register_ioevent(event, &IoEventAddress::Mmio(address), value).map_err(ioctl("KVM_IOEVENTFD"))
    }
}
