//! Tests of the forest as a whole: against a model, across checkpoints and crashes, and with damage.

mod damage;
mod durable;
mod model;
mod rig;
