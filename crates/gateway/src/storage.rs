//! What the gateway needs of the cluster. [`Handle`] is the cluster; tests have a small one in memory.

use cobalt_client::{ClientError, GetStream, Handle, OpenObject, PutStream, StoredBody};
use cobalt_dma::{Buf, Slice};
use cobalt_rpc::proto::cas::{Answer, Command, Outcome, Query};
use cobalt_rpc::proto::record::{Body, ObjectRecord};
use std::future::Future;
use std::ops::Range;

/// The cluster, from any thread.
pub trait Storage: Clone + Send + Sync + 'static {
    type Put: Put<Stored = Self::Stored>;
    type Stored: Send;
    type Object: Object;
    /// Asks the catalogue.
    fn ask(&self, query: Query) -> impl Future<Output = Result<Answer, ClientError>> + Send;
    /// Changes the catalogue.
    fn commit(&self, command: Command) -> impl Future<Output = Result<Outcome, ClientError>> + Send;
    /// Begins a body.
    fn put(&self, size: u64) -> impl Future<Output = Result<Self::Put, ClientError>> + Send;
    /// Gives a stored body its name.
    fn publish(
        &self,
        body: Self::Stored,
        command: impl FnOnce(Body) -> Command + Send,
    ) -> impl Future<Output = Result<Outcome, ClientError>> + Send;
    /// Looks an object up and holds it.
    fn open(
        &self,
        bucket: &str,
        key: &[u8],
    ) -> impl Future<Output = Result<Self::Object, ClientError>> + Send;
}

/// A body on its way in; dropped unfinished, it leaves nothing.
pub trait Put: Send {
    type Stored: Send;
    /// Bytes per unit.
    fn unit_size(&self) -> usize;
    /// A buffer for the next unit, as soon as there is memory.
    fn buf(&mut self) -> impl Future<Output = Buf> + Send;
    /// Hands over the next unit.
    fn write(&mut self, unit: Buf) -> impl Future<Output = Result<(), ClientError>> + Send;
    /// Waits until all units are durable.
    fn finish(self) -> impl Future<Output = Result<Self::Stored, ClientError>> + Send;
}

/// An object that was looked up.
pub trait Object: Send + Sync + 'static {
    type Stream: Pieces;
    /// Its record.
    fn record(&self) -> &ObjectRecord;
    /// Its bytes.
    fn read(&self, range: Range<u64>) -> impl Future<Output = Result<Self::Stream, ClientError>> + Send;
}

/// Bytes of a range, in order.
pub trait Pieces: Send + 'static {
    /// The next bytes; none at the end of the range.
    fn next(&mut self) -> impl Future<Output = Option<Result<Slice, ClientError>>> + Send;
}

impl Storage for Handle {
    type Put = PutStream;
    type Stored = StoredBody;
    type Object = OpenObject;
    async fn ask(&self, query: Query) -> Result<Answer, ClientError> {
        Handle::ask(self, query).await
    }
    async fn commit(&self, command: Command) -> Result<Outcome, ClientError> {
        Handle::commit(self, command).await
    }
    async fn put(&self, size: u64) -> Result<PutStream, ClientError> {
        Handle::put(self, Some(size)).await
    }
    async fn publish(
        &self,
        body: StoredBody,
        command: impl FnOnce(Body) -> Command + Send,
    ) -> Result<Outcome, ClientError> {
        Handle::publish(self, body, command).await
    }
    async fn open(&self, bucket: &str, key: &[u8]) -> Result<OpenObject, ClientError> {
        Handle::open(self, bucket, key).await
    }
}

impl Put for PutStream {
    type Stored = StoredBody;
    fn unit_size(&self) -> usize {
        PutStream::unit_size(self)
    }
    async fn buf(&mut self) -> Buf {
        PutStream::buf(self).await
    }
    async fn write(&mut self, unit: Buf) -> Result<(), ClientError> {
        PutStream::write(self, unit).await
    }
    async fn finish(self) -> Result<StoredBody, ClientError> {
        PutStream::finish(self).await
    }
}

impl Object for OpenObject {
    type Stream = GetStream;
    fn record(&self) -> &ObjectRecord {
        OpenObject::record(self)
    }
    async fn read(&self, range: Range<u64>) -> Result<GetStream, ClientError> {
        OpenObject::read(self, range).await
    }
}

impl Pieces for GetStream {
    async fn next(&mut self) -> Option<Result<Slice, ClientError>> {
        GetStream::next(self).await
    }
}
