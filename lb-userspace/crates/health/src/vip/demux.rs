//! Brings each packet that comes to the flow that it belongs to.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    io,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use tokio::{io::unix::AsyncFd, task::yield_now};

use super::{
    Error,
    frame::{Content, Flow, parse},
    sockets::Receiver,
};

/// Packets that a flow has room for; more are lost, as on any link.
const ROOM: usize = 32;
/// Packets that are read before others of this thread get their turn.
const BURST: usize = 256;

/// The flows that are open.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<HashMap<Flow, Arc<Inbox>>>);

impl Table {
    /// Opens a flow; no other open one is the same.
    pub(super) fn open(&self, flow: Flow) -> Arc<Inbox> {
        let inbox = Arc::<Inbox>::default();
        lock(&self.0).insert(flow, Arc::clone(&inbox));
        inbox
    }

    /// Ends a flow.
    pub(super) fn close(&self, flow: &Flow) {
        lock(&self.0).remove(flow);
    }

    /// Brings a packet to its flow.
    fn deliver(&self, packet: &[u8]) {
        let Some((flow, content)) = parse(packet) else { return };
        let Some(inbox) = lock(&self.0).get(&flow).cloned() else { return };
        inbox.put(Message { content, packet: packet.to_vec() });
    }

    /// Fails all flows: nothing will come any more.
    pub(super) fn fail(&self, error: &Error) {
        for inbox in lock(&self.0).values() {
            inbox.fail(error.clone());
        }
    }

    /// Brings packets from `receiver` until that is broken.
    pub(super) async fn serve(self: Arc<Self>, receiver: AsyncFd<Arc<Receiver>>) {
        let mut buffer = vec![0; 1 << 16];
        let broken = loop {
            if let Err(error) = self.read(&receiver, &mut buffer).await {
                break error;
            }
            yield_now().await;
        };
        self.fail(&Error::Local(format!("read from a packet socket: {broken}")));
    }

    /// Reads what is there, or waits for it.
    async fn read(&self, receiver: &AsyncFd<Arc<Receiver>>, buffer: &mut [u8]) -> io::Result<()> {
        let mut ready = receiver.readable().await?;
        for _ in 0..BURST {
            match ready.try_io(|receiver| receiver.get_ref().receive(buffer)) {
                Ok(Ok(length)) => self.deliver(&buffer[..length]),
                // A link that went down reports that to every packet socket on it, once.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// A packet of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub content: Content,
    pub packet: Vec<u8>,
}

/// The waiting tasks: the two halves of a stream may be in different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Reader,
    Writer,
}

/// What has come for a flow.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Message>,
    failure: Option<Error>,
    wakers: [Option<Waker>; 2],
}

impl Inbox {
    fn put(&self, message: Message) {
        let mut waiting = lock(&self.0);
        if waiting.messages.len() < ROOM {
            waiting.messages.push_back(message);
        }
        Self::wake_all(waiting);
    }

    fn fail(&self, error: Error) {
        let mut waiting = lock(&self.0);
        waiting.failure = Some(error);
        Self::wake_all(waiting);
    }

    fn wake_all(mut waiting: std::sync::MutexGuard<'_, Waiting>) {
        let wakers = std::mem::take(&mut waiting.wakers);
        // The task that wakes up may take the lock at once.
        drop(waiting);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Wakes one of the waiting tasks.
    pub(super) fn wake_side(&self, side: Side) {
        let waker = lock(&self.0).wakers[side as usize].take();
        waker.into_iter().for_each(Waker::wake);
    }

    /// The next message, or the error if there will be none; else `side` is woken when one is
    /// there.
    pub(super) fn poll(&self, cx: &Context<'_>, side: Side) -> Poll<Result<Message, Error>> {
        let mut waiting = lock(&self.0);
        if let Some(message) = waiting.messages.pop_front() {
            return Poll::Ready(Ok(message));
        }
        if let Some(failure) = &waiting.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        let slot = &mut waiting.wakers[side as usize];
        match slot {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => *slot = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    pub(super) async fn next(&self) -> Result<Message, Error> {
        poll_fn(|cx| self.poll(cx, Side::Reader)).await
    }
}

/// As the waker of a timer, it wakes all tasks that wait for messages.
impl Wake for Inbox {
    fn wake(self: Arc<Self>) {
        Self::wake_all(lock(&self.0));
    }
}

/// Locks what no panic leaves half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
