//! The agent as a program: hosted, over a real socket and a real link.
//!
//! Each test has an agent, a directory and a link of its own, and fails if a process is left when it ends.

mod exec;
mod files;
mod harness;
mod managed;
mod process;
mod pty;
mod reverse;
mod system;
