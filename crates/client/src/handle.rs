//! What other threads hold of a client.

use crate::bridge::Call;
use crate::config::LayoutConfig;
use crate::stream::{OpenObject, PutStream, StoredBody};
use crate::{ClientError, ClusterStatus};
use cobalt_dma::Arena;
use cobalt_reactor::mailbox;
use cobalt_rpc::proto::cas::{Answer, Command, Outcome, Query};
use cobalt_rpc::proto::record::Body;
use futures::channel::oneshot;
use std::fmt;

/// A handle to the client on its reactor. Its futures run on any executor.
#[derive(Clone)]
pub struct Handle {
    calls: mailbox::Sender<Call>,
    arena: Arena,
    layout: LayoutConfig,
}

/// Sends a call and waits for its answer.
pub(crate) async fn call<T>(
    calls: &mailbox::Sender<Call>,
    make: impl FnOnce(oneshot::Sender<Result<T, ClientError>>) -> Call,
) -> Result<T, ClientError> {
    let (slot, answer) = oneshot::channel();
    calls.send(make(slot)).await.map_err(|_| ClientError::Closed)?;
    answer.await.unwrap_or(Err(ClientError::Closed))
}

impl Handle {
    pub(crate) fn new(calls: mailbox::Sender<Call>, arena: Arena, layout: LayoutConfig) -> Handle {
        Handle { calls, arena, layout }
    }

    /// The arena that bodies travel in.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Bytes per unit of a body of `size` bytes.
    pub fn unit_for(&self, size: u64) -> usize {
        self.layout.unit_for(Some(size)) as usize
    }

    /// Asks the catalogue.
    ///
    /// # Errors
    /// The catalogue's refusal, or why it could not be asked.
    pub async fn ask(&self, query: Query) -> Result<Answer, ClientError> {
        call(&self.calls, |slot| Call::Ask { query, slot }).await
    }

    /// Changes the catalogue, once, however often the request is repeated on its way.
    ///
    /// # Errors
    /// The catalogue's refusal; after `Deadline` the change may have happened or not.
    pub async fn commit(&self, command: Command) -> Result<Outcome, ClientError> {
        call(&self.calls, |slot| Call::Commit { command, slot }).await
    }

    /// Begins a body of `size` bytes, if that is known.
    ///
    /// # Errors
    /// `Unavailable`, with the target's name, when fewer than N+K are up; `NoSpace` when one is full; `Busy`.
    pub async fn put(&self, size: Option<u64>) -> Result<PutStream, ClientError> {
        let parts = call(&self.calls, |slot| Call::Put { size, slot }).await?;
        Ok(PutStream::new(parts, self.arena.clone()))
    }

    /// Commits the command that names `body`. When it is refused, the body is collected; when its fate is unknown,
    /// the client goes on asking behind the caller's back, and the body is collected only if it was refused.
    ///
    /// # Errors
    /// As for [`Handle::commit`].
    pub async fn publish(
        &self,
        body: StoredBody,
        command: impl FnOnce(Body) -> Command,
    ) -> Result<Outcome, ClientError> {
        let (body, fate) = body.into_parts();
        let command = command(body);
        match fate {
            Some(fate) => call(&self.calls, |slot| Call::Publish { command, fate, slot }).await,
            None => self.commit(command).await,
        }
    }

    /// Looks an object up and holds it against the collector.
    ///
    /// # Errors
    /// The catalogue's refusal, or why it could not be asked.
    pub async fn open(&self, bucket: &str, key: &[u8]) -> Result<OpenObject, ClientError> {
        let (bucket, key) = (bucket.to_owned(), key.to_vec());
        let (record, hold) = call(&self.calls, |slot| Call::Open { bucket, key, slot }).await?;
        Ok(OpenObject { record, hold, calls: self.calls.clone() })
    }

    /// The cluster as this client sees it. A stopped client yields an empty one.
    pub async fn status(&self) -> ClusterStatus {
        let (slot, status) = oneshot::channel();
        if self.calls.send(Call::Status { slot }).await.is_err() {
            return ClusterStatus::default();
        }
        status.await.unwrap_or_default()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle")
    }
}

#[cfg(test)]
mod tests {
    use super::Handle;
    use crate::{GetStream, OpenObject, PutStream, StoredBody};

    #[test]
    fn handles_and_streams_travel_between_threads() {
        fn send<T: Send>() {}
        fn sync<T: Sync>() {}
        send::<Handle>();
        sync::<Handle>();
        send::<PutStream>();
        send::<StoredBody>();
        send::<OpenObject>();
        sync::<OpenObject>();
        send::<GetStream>();
    }
}
