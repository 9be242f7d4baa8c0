//! `belljar up` and `down`, in parts: the data directory ([`data_dir`]), the process behind it ([`instance`]), the log
//! ([`log`]), and server and node in one process ([`together`]).

pub mod data_dir;
pub mod instance;
pub mod log;
pub mod summary;
pub mod together;
