//! The layouts of NVM Express Base Specification 2.0 and NVM Command Set Specification 1.0, as far as the driver uses them.
//! Numbers in brackets are sections of the former, unless NVM stands before them.

pub mod command;
pub mod completion;
pub mod identify;
pub mod log;
pub mod registers;
pub mod sgl;

pub use command::{Command, admin, nvm};
pub use completion::{Completion, Status};
pub use sgl::SglDescriptor;
