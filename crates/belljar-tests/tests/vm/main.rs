//! The whole system with real VMs: every case boots at least one and drives it from outside.

#![expect(clippy::unwrap_used, reason = "tests")]

mod bad_input;
mod builds;
mod drivers;
mod egress;
mod files;
mod fork;
mod half_open;
mod hazards;
mod hostile;
mod images;
mod ingress;
mod lifecycle;
mod network;
mod pool;
mod pressure;
mod processes;
mod pty;
mod random;
mod secrets;
mod share;
mod sleep;
mod ssh;
mod storage;
mod survival;
mod systemd;
