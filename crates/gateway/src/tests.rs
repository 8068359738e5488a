//! The gateway as clients meet it: real sockets, signed requests, and a small store in memory behind.

mod admin;
mod double;
mod objects;
mod refusals;
mod wire;
