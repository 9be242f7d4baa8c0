//! Carries the bytes of a channel to and from a TCP port of a sandbox. Each direction ends by itself.

use std::{io, pin::pin, sync::Arc};

use bytes::BytesMut;
use russh::{ChannelWriteHalf, server::Msg};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::inbox::Inbox;
use crate::limits::SSH_PACKET;

/// The way back to a channel's client.
pub(super) type Outbox = Arc<ChannelWriteHalf<Msg>>;

/// Bytes that are carried at once.
pub(super) const CHUNK: usize = SSH_PACKET as usize;

/// The client is gone.
pub(super) fn gone(_: russh::Error) -> io::Error {
    io::Error::from(io::ErrorKind::BrokenPipe)
}

/// Lets the client send again what was taken.
pub(super) async fn taken(outbox: &Outbox, count: usize) -> io::Result<()> {
    outbox.grant_window(u32::try_from(count).unwrap_or(0)).await.map_err(gone)
}

/// Carries both ways until both directions have ended, or one has failed. A client that has closed its channel still has
/// all of its bytes passed on.
pub(super) async fn carry(
    inbox: &Inbox,
    outbox: &Outbox,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut inward = pin!(async {
        while let Some(bytes) = inbox.take(CHUNK).await {
            write.write_all(&bytes).await?;
            write.flush().await?;
            taken(outbox, bytes.len()).await?;
        }
        write.shutdown().await
    });
    let mut outward = pin!(async {
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            if read.read_buf(&mut chunk).await? == 0 {
                return outbox.eof().await.map_err(gone);
            }
            outbox.data_bytes(chunk.freeze()).await.map_err(gone)?;
        }
    });
    let (mut is_in, mut is_out) = (false, false);
    while !(is_in && is_out) {
        tokio::select! {
            done = &mut inward, if !is_in => {
                done?;
                is_in = true;
            }
            done = &mut outward, if !is_out => {
                done?;
                is_out = true;
            }
            () = inbox.closed(), if is_in => return Ok(()),
        }
    }
    Ok(())
}
