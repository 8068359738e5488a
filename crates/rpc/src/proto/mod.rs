//! The messages of the two services, and the records that travel in them. Bodies are postcard; a
//! service's requests keep their opcodes for ever.

pub mod cas;
pub mod ios;
pub mod record;
