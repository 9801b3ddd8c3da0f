//! Container images on disk, in an OCI image layout.

#![forbid(unsafe_code)]
