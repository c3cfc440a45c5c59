//! What is the same of all queues, whatever the order of their items.

/// `queue!(Queue)`: for a struct with a field `core`, all methods but those that make it and put items.
macro_rules! queue {
    ($queue:ident) => {
        impl $queue {
            /// Gives an item up that was delivered so often without being acknowledged: it goes to the [dead
            /// letters](Self::dead_letters). By default items are delivered for ever.
            ///
            /// It is a setting of this handle and its clones, and is applied by whoever gives an item back or would
            /// take it next: let all handles of a queue have the same.
            ///
            /// # Errors
            /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for zero.
            pub fn max_deliveries(mut self, deliveries: u32) -> $crate::Result<Self> {
                self.core.set_max_deliveries(deliveries)?;
                Ok(self)
            }

            /// The session that items are put and taken with. Items outlive it.
            pub fn session(&self) -> &$crate::Session {
                &self.core.session
            }

            /// Waits for an item, takes it off the queue and returns its value. Use [`tokio::time::timeout`] for a
            /// limit.
            ///
            /// # Errors
            /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) as soon as the session is lost, with
            /// [`Outcome::Unknown`](crate::Outcome::Unknown) if an item may have gone with it. Whatever keeps the
            /// server from answering until the client's request timeout: an item that was taken goes back.
            ///
            /// # Cancel safety
            /// Dropping the future gives up the place among those who wait. An item that was on its way goes back to
            /// its place in the queue.
            pub async fn dequeue(&self) -> $crate::Result<bytes::Bytes> {
                self.core.dequeue().await
            }

            /// Takes the first item off the queue if there is one, before all who wait.
            ///
            /// # Errors
            /// As [`dequeue`](Self::dequeue).
            ///
            /// # Cancel safety
            /// As [`dequeue`](Self::dequeue).
            pub async fn try_dequeue(&self) -> $crate::Result<Option<bytes::Bytes>> {
                self.core.try_dequeue().await
            }

            /// Waits for an item, and borrows it until it is acknowledged. Use [`tokio::time::timeout`] for a limit.
            ///
            /// Two RPCs for an item that waits, one for an item that comes, and one for the acknowledgement.
            ///
            /// # Errors
            /// As [`dequeue`](Self::dequeue), but the item never is lost.
            ///
            /// # Cancel safety
            /// As [`dequeue`](Self::dequeue). An item that was on its way goes back to its place, and that does not
            /// count as a delivery.
            pub async fn take(&self) -> $crate::Result<$crate::Job> {
                self.core.take().await
            }

            /// Borrows the first item if there is one, before all who wait.
            ///
            /// # Errors
            /// As [`take`](Self::take).
            ///
            /// # Cancel safety
            /// As [`take`](Self::take).
            pub async fn try_take(&self) -> $crate::Result<Option<$crate::Job>> {
                self.core.try_take().await
            }

            /// All items that were given up, the first of them first: one RPC.
            ///
            /// # Errors
            /// As [`peek`](Self::peek).
            ///
            /// # Cancel safety
            /// Safe: it only reads.
            pub async fn dead_letters(&self) -> $crate::Result<Vec<$crate::DeadLetter>> {
                self.core.dead_letters().await
            }

            /// Puts a dead letter at the end of the queue, or of its priority, as a new item; false if it is no longer
            /// there, and was not taken away by this call. One RPC.
            ///
            /// # Errors
            /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for another queue's letter.
            /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) when the session is lost. Whatever keeps the server from
            /// answering until the client's request timeout. Where it cannot be told whether this call or another took
            /// the letter away, [`Error::outcome`](crate::Error::outcome) is
            /// [`Unknown`](crate::Outcome::Unknown). Calling again is harmless: it says false where it was done.
            ///
            /// # Cancel safety
            /// Dropping the future lets it go on in the background; calling again is harmless.
            pub async fn requeue(&self, letter: &$crate::DeadLetter) -> $crate::Result<bool> {
                self.core.requeue(letter).await
            }

            /// Deletes a dead letter; false if it is no longer there. One RPC.
            ///
            /// # Errors
            /// As [`requeue`](Self::requeue).
            ///
            /// # Cancel safety
            /// As [`requeue`](Self::requeue).
            pub async fn discard(&self, letter: &$crate::DeadLetter) -> $crate::Result<bool> {
                self.core.discard(letter).await
            }

            /// The value of the item that would be taken next, if there is one: two RPCs, and a third where the first
            /// item is of another priority than the one before, and not the only one of it.
            ///
            /// # Errors
            /// Whatever keeps the server from answering until the client's request timeout.
            ///
            /// # Cancel safety
            /// Safe: it only reads.
            pub async fn peek(&self) -> $crate::Result<Option<bytes::Bytes>> {
                self.core.peek().await
            }

            /// How many items wait to be taken; those in somebody's hand are not counted. One RPC.
            ///
            /// # Errors
            /// As [`peek`](Self::peek).
            ///
            /// # Cancel safety
            /// Safe: it only reads.
            pub async fn len(&self) -> $crate::Result<u64> {
                self.core.len().await
            }

            /// Whether no item waits to be taken. One RPC.
            ///
            /// # Errors
            /// As [`peek`](Self::peek).
            ///
            /// # Cancel safety
            /// Safe: it only reads.
            pub async fn is_empty(&self) -> $crate::Result<bool> {
                Ok(self.len().await? == 0)
            }
        }
    };
}

pub(super) use queue;
