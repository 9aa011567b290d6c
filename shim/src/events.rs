//! Events for containerd, in the order in which they happened: a task sends them one after the other, and again until
//! containerd, which may be restarting, has taken them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task as event;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::EventsClient;
use protobuf::MessageFull;
use protobuf::well_known_types::any::Any;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use ttrpc::r#async::Client;
use ttrpc::context;

use crate::process::timestamp;

/// How long containerd may take to take an event.
const LIMIT: Duration = Duration::from_secs(5);
/// How long is waited before an event is sent again.
const PAUSE: Duration = Duration::from_millis(500);
/// How many events wait for a containerd that is away; then the oldest go.
const MAX_WAITING: usize = 4096;

/// An event that containerd knows, by its topic.
pub(crate) trait Event: MessageFull {
    /// As containerd's clients filter by it.
    const TOPIC: &'static str;
}

macro_rules! topics {
    ($($event:ident: $topic:literal,)*) => {
        $(impl Event for event::$event {
            const TOPIC: &'static str = $topic;
        })*
    };
}

topics! {
    TaskCreate: "/tasks/create",
    TaskStart: "/tasks/start",
    TaskExit: "/tasks/exit",
    TaskDelete: "/tasks/delete",
    TaskOOM: "/tasks/oom",
    TaskExecAdded: "/tasks/exec-added",
    TaskExecStarted: "/tasks/exec-started",
    TaskPaused: "/tasks/paused",
    TaskResumed: "/tasks/resumed",
}

/// Where events are handed in.
#[derive(Debug)]
pub(crate) struct Publisher {
    namespace: String,
    /// None once no more are taken.
    sender: Mutex<Option<mpsc::UnboundedSender<Envelope>>>,
}

impl Publisher {
    /// Starts the task that sends events to the ttrpc socket at `address`. It ends when this is closed and
    /// all are sent.
    pub(crate) fn start(address: &str, namespace: &str) -> (Self, JoinHandle<()>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let address = if address.contains("://") {
            address.to_owned()
        } else {
            format!("unix://{address}")
        };
        let task = tokio::spawn(send_all(address, receiver));
        let publisher = Self {
            namespace: namespace.into(),
            sender: Mutex::new(Some(sender)),
        };
        (publisher, task)
    }

    /// Hands an event in.
    pub(crate) fn publish<E: Event>(&self, event: &E) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(%error, topic = E::TOPIC, "an event cannot be written");
                return;
            }
        };
        let mut any = Any::new();
        // Without a host before it, as containerd's own have it.
        any.type_url = E::descriptor().full_name().into();
        any.value = value;
        let mut envelope = Envelope::new();
        envelope.timestamp = Some(timestamp(SystemTime::now())).into();
        envelope.namespace.clone_from(&self.namespace);
        envelope.topic = E::TOPIC.into();
        envelope.event = Some(any).into();
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sender
            .as_ref()
            .is_some_and(|sender| sender.send(envelope).is_ok());
        if !sent {
            tracing::error!(topic = E::TOPIC, "events are no longer sent");
        }
    }

    /// No more events come; the task ends when it has sent those that were handed in.
    pub(crate) fn close(&self) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

async fn send_all(address: String, mut receiver: mpsc::UnboundedReceiver<Envelope>) {
    let mut client = None;
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match receiver.recv().await {
                Some(envelope) => waiting.push_back(envelope),
                None => return,
            }
        }
        while let Ok(envelope) = receiver.try_recv() {
            waiting.push_back(envelope);
        }
        while waiting.len() > MAX_WAITING {
            waiting.pop_front();
            tracing::error!("containerd is away for so long that an event is lost");
        }
        let Some(envelope) = waiting.front() else {
            continue;
        };
        if send(&address, &mut client, envelope).await {
            waiting.pop_front();
        } else {
            client = None;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Says whether the event is done with.
async fn send(address: &str, client: &mut Option<EventsClient>, envelope: &Envelope) -> bool {
    if client.is_none() {
        match Client::connect(address).await {
            Ok(connected) => *client = Some(EventsClient::new(connected)),
            Err(error) => {
                tracing::debug!(%error, "containerd is away");
                return false;
            }
        }
    }
    let Some(client) = client else { return false };
    let mut request = ForwardRequest::new();
    request.envelope = Some(envelope.clone()).into();
    let limit = i64::try_from(LIMIT.as_nanos()).unwrap_or(i64::MAX);
    let sent = client.forward(context::with_timeout(limit), &request);
    match tokio::time::timeout(LIMIT, sent).await {
        Ok(Ok(_)) => true,
        // It was heard, and would be refused again.
        Ok(Err(ttrpc::Error::RpcStatus(status))) => {
            tracing::error!(
                topic = envelope.topic,
                message = status.message,
                "containerd refuses an event"
            );
            true
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "an event was not taken");
            false
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    #[derive(Default)]
    struct Containerd {
        heard: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let envelope = request.envelope();
            assert_eq!(envelope.namespace, "default");
            let event = envelope.event();
            self.heard
                .lock()
                .unwrap()
                .push(format!("{} {}", envelope.topic, event.type_url));
            Ok(Empty::new())
        }
    }

    #[tokio::test]
    async fn events_wait_for_containerd_and_keep_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let path = path.to_str().unwrap();
        let (publisher, sending) = Publisher::start(path, "default");
        publisher.publish(&event::TaskCreate::new());
        publisher.publish(&event::TaskStart::new());
        publisher.publish(&event::TaskExit::new());
        // Nobody listens so far.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let containerd = Arc::new(Containerd::default());
        let mut server = Server::new()
            .bind(&format!("unix://{path}"))
            .unwrap()
            .register_service(create_events(Arc::clone(&containerd) as _));
        server.start().await.unwrap();
        publisher.close();
        sending.await.unwrap();
        let heard = containerd.heard.lock().unwrap().clone();
        assert_eq!(
            heard,
            [
                "/tasks/create containerd.events.TaskCreate",
                "/tasks/start containerd.events.TaskStart",
                "/tasks/exit containerd.events.TaskExit",
            ]
        );
        server.shutdown().await.unwrap();
    }
}
