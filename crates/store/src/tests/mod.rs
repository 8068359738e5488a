//! Tests of the whole engine, on virtual time, over a device that loses power.

mod dev;
pub(crate) mod rig;

mod cold;
mod crash;
mod damage;
mod fsck;
mod fsck_start;
mod hostile;
mod inline;
mod model;
mod recovery;
mod write_path;
