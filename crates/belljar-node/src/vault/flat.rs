//! How the work on flat files is cut, and what need not be stored.

use crate::limits::PAGE;

/// Bytes of chunks that are worked on at once: enough for one large read, little enough to hold a few.
const BATCH: usize = 1 << 20;

/// Cuts a list of chunks into pieces of about [`BATCH`] bytes.
pub(super) fn batches(chunks: &[u32], chunk_size: u32) -> Vec<&[u32]> {
    chunks.chunks((BATCH / chunk_size as usize).max(1)).collect()
}

/// Whether there is nothing but zeros. Compared with a page of them, as a comparison of bytes is one call also without an optimizer.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROES: [u8; PAGE] = [0; PAGE];
    bytes.chunks(ZEROES.len()).all(|piece| *piece == ZEROES[..piece.len()])
}
