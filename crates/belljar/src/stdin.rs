//! Our stdin as a channel of bytes.
//!
//! A thread of its own reads it, since a read of a terminal cannot be interrupted: at the end of the program the
//! thread simply goes with it. Tokio's stdin would make the runtime wait for one more key.

use std::{
    io::{self, Read},
    thread,
};

use tokio::sync::mpsc;

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// Chunks that wait for their reader.
const QUEUE: usize = 4;

/// Starts reading; the channel closes at end of file or on a failure.
pub fn read() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => {
                    if sender.blocking_send(buffer[..n].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot read stdin");
                    return;
                }
            }
        }
    })?;
    Ok(receiver)
}
