//! The rest of a vCPU's state at power-on: model-specific registers, floating point, local APIC.

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry};

use super::{KvmError, Vcpu, ioctl};

/// MTRR default type (Intel SDM volume 3, 11.11.2.1): MTRRs on, everything write-back. Without it Linux takes all
/// memory for uncached.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ON_WRITE_BACK: u64 = (1 << 11) | 6;
/// `IA32_MISC_ENABLE`: fast string instructions.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;

/// Power-on values of the x87 control word and of MXCSR, as an operating system sets them: all exceptions masked.
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// Local vector table entries of the local APIC, as byte offsets into its registers.
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
/// Delivery modes, in bits 8 to 10 of an entry.
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXTINT: u32 = 7 << 8;

impl Vcpu {
    /// Sets model-specific registers, floating point and the local interrupt pins as firmware leaves them: LINT0
    /// takes the legacy interrupt controller, LINT1 non-maskable interrupts (MP specification 1.4, 3.6.2).
    pub fn set_power_on_state(&self) -> Result<(), KvmError> {
        let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let entries = [entry(MSR_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK), entry(MSR_MISC_ENABLE, FAST_STRINGS)];
        let msrs = Msrs::from_entries(&entries).expect("two entries fit");
        let set = self.fd.set_msrs(&msrs).map_err(ioctl("KVM_SET_MSRS"))?;
        if set != entries.len() {
            return Err(KvmError::Missing { capability: "an MSR that Linux needs" });
        }
        let fpu = kvm_fpu { fcw: FPU_CONTROL, mxcsr: MXCSR, ..Default::default() };
        self.fd.set_fpu(&fpu).map_err(ioctl("KVM_SET_FPU"))?;
        let mut apic = self.fd.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))?;
        set_delivery_mode(&mut apic, APIC_LVT_LINT0, DELIVER_EXTINT);
        set_delivery_mode(&mut apic, APIC_LVT_LINT1, DELIVER_NMI);
        self.fd.set_lapic(&apic).map_err(ioctl("KVM_SET_LAPIC"))
    }
}

fn set_delivery_mode(apic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes = &mut apic.regs[register..register + 4];
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate() {
        value |= u32::from(*byte as u8) << (8 * i);
    }
    value = (value & !0x700) | mode;
    for (byte, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *byte = new as _;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_delivery_mode_changes() {
        let mut apic = kvm_lapic_state::default();
        apic.regs[APIC_LVT_LINT0 + 2] = 1; // masked
        set_delivery_mode(&mut apic, APIC_LVT_LINT0, DELIVER_EXTINT);
        assert_eq!(apic.regs[APIC_LVT_LINT0..APIC_LVT_LINT0 + 4], [0, 7, 1, 0]);
        set_delivery_mode(&mut apic, APIC_LVT_LINT0, DELIVER_NMI);
        assert_eq!(apic.regs[APIC_LVT_LINT0 + 1], 4);
    }
}
