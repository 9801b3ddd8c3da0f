//! Kernel images from strangers: telling what they are, what they can do, and unpacking them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_images_kernel::facts::Facts;
use vmm_images_kernel::image::{HEAD_BYTES, Image};

fuzz_target!(|data: &[u8]| {
    let _ = Facts::of_vmlinux(data);
    if let Ok(Image::BzImage(image)) = Image::parse(&data[..data.len().min(HEAD_BYTES)], data.len() as u64) {
        let _ = image.unpack(data);
    }
});
