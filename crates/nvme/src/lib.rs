//! NVMe in userspace.
pub mod vfio;
