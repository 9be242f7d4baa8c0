//! Bytes of a hostile peer, fed to both ends of the link. The body lives in the crate, where a plain test runs it too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| belljar_link::fuzz_decoder(data));
