//! NVMe controllers through VFIO: an ordinary process drives a PCI function, and the IOMMU keeps the function from all
//! memory but what that process gave it.

mod address;
mod bar;
mod error;
mod function;
mod handle;
pub mod host;
mod iova;
mod sigbus;
mod sys;

pub use address::{AddressError, PciAddress};
pub use bar::Bar;
pub use error::VfioError;
pub use function::{VfioFunction, Wait};
pub use handle::{Description, Handle, Notice};
pub use iova::{IovaSpace, RangesError, parse_ranges};
