//! Layers of container images: archives of files that may be hostile, made into root file systems.

#![forbid(unsafe_code)]
