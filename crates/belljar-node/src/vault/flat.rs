//! How the work on flat files is cut, and what need not be stored.

/// Bytes of chunks that are worked on at once: enough for one large read, little enough to hold a few.
const BATCH: usize = 1 << 20;

/// Cuts a list of chunks into pieces of about [`BATCH`] bytes.
pub(super) fn batches(chunks: &[u32], chunk_size: u32) -> Vec<&[u32]> {
    chunks.chunks((BATCH / chunk_size as usize).max(1)).collect()
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // In blocks, as the optimizer turns those into vector instructions.
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}
