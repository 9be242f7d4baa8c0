//! `-R`: a port of the sandbox whose connections are the SSH client's to serve.
//!
//! ```text
//! tcpip-forward -> the guest listens -> each connection: forwarded-tcpip channel opened -> bridge
//!                                                               \-> refused: reset
//! ```

use std::sync::Arc;

use russh::{
    Channel, ChannelMsg,
    server::{Handle, Msg},
};
use tokio::task::JoinSet;

use super::{bridge, inbox::Inbox};
use crate::ingress::{GuestConnection, GuestListener, Offered};

/// Offers every connection to the client, until the sandbox ends it or this is dropped. `address` is what the client asked
/// for, by which it knows the port.
pub(super) async fn serve(mut listener: GuestListener, address: String, handle: Handle) {
    let port = u32::from(listener.port());
    // Dropped with us, and every connection with it.
    let mut carried = JoinSet::new();
    while let Some(offered) = listener.next().await {
        while carried.try_join_next().is_some() {}
        let (address, handle) = (address.clone(), handle.clone());
        carried.spawn(async move { pass_on(&offered, address, port, &handle).await });
    }
}

async fn pass_on(offered: &Offered, address: String, port: u32, handle: &Handle) {
    let (host, peer) = offered.peer().rsplit_once(':').unwrap_or((offered.peer(), ""));
    let peer = peer.parse::<u16>().unwrap_or(0);
    let channel = handle.channel_open_forwarded_tcpip(address, port, host, peer.into()).await;
    // Taken all the same, so that the guest's program sees at once that nobody is there.
    let guest = offered.take().await;
    match (guest, channel) {
        (Ok(guest), Ok(channel)) => carry(guest, channel).await,
        (Err(error), Ok(channel)) => {
            tracing::debug!(error = error.message, "a forwarded connection broke off");
            let _ = channel.close().await;
        }
        (_, Err(error)) => tracing::debug!(%error, "the client does not take a forwarded connection"),
    }
}

async fn carry(guest: GuestConnection, channel: Channel<Msg>) {
    let (mut read, outbox) = channel.split();
    let (inbox, outbox) = (Inbox::default(), Arc::new(outbox));
    // Taken out at once, wherever it is to go: russh must not be made to wait.
    let receive = async {
        while let Some(message) = read.wait().await {
            match message {
                ChannelMsg::Data { data } => inbox.push(&data),
                ChannelMsg::Eof => inbox.end(),
                ChannelMsg::Close => inbox.close(),
                _ => {}
            }
        }
        // The channel is gone; what came over it is still passed on, unless the connection is gone, too.
        inbox.close();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = bridge::carry(&inbox, &outbox, guest) => {}
        () = receive => {}
    }
    let _ = outbox.close().await;
}
