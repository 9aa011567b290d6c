//! Requests to the kernel over rtnetlink: changes that are acknowledged, and dumps.

use std::io;

use futures::{StreamExt, TryStreamExt};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use rtnetlink::Handle;
use tokio::task::JoinHandle;

/// A socket to the kernel's network configuration, with the task that reads it.
pub(super) struct Netlink {
    handle: Handle,
    reader: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// A request could not be sent, or a dump broke.
    #[error("speak netlink")]
    Speak(#[from] rtnetlink::Error),
    /// The kernel refused.
    #[error("the kernel refused")]
    Refused(#[source] io::Error),
}

impl NetlinkError {
    /// The kernel's error number, if it is the kernel that refused.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(error) => error.raw_os_error(),
            Self::Speak(rtnetlink::Error::NetlinkError(message)) => message.to_io().raw_os_error(),
            _ => None,
        }
    }
}

impl Netlink {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        Ok(Self {
            handle,
            reader: tokio::spawn(connection),
        })
    }

    /// Sends one change with the given NLM_F_* flags and waits for the kernel's answer to it.
    pub(super) async fn change(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle.clone().request(message)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(NetlinkError::Refused(error.to_io()));
            }
        }
        Ok(())
    }

    /// All links.
    pub(super) async fn links(&self) -> Result<Vec<LinkMessage>, NetlinkError> {
        let mut message =
            NetlinkMessage::from(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self.handle.clone().request(message)?;
        let mut links = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    links.push(link);
                }
                NetlinkPayload::Error(error) => return Err(NetlinkError::Refused(error.to_io())),
                _ => {}
            }
        }
        Ok(links)
    }

    /// The addresses of one link.
    pub(super) async fn addresses(&self, index: u32) -> Result<Vec<AddressMessage>, NetlinkError> {
        let request = self.handle.address().get().set_link_index_filter(index);
        Ok(request.execute().try_collect().await?)
    }
}
