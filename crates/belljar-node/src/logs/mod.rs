//! The log of each sandbox on the host: what its processes wrote and what befell it.
//!
//! A [`collector`] copies the guest's log stream into a [`file`] of JSON lines, bounded in size, that outlives the
//! sandbox by [`crate::limits::LOG_RETENTION_DAYS`]. Queries read the file; they never ask the guest.

pub(crate) mod collector;
pub(crate) mod file;
mod query;

pub(crate) use self::{
    file::LogFile,
    query::{page, processes},
};
