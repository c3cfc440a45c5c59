//! What all guards have in common, whatever it is that they hold.

/// `holder!(Member, owned)`: for a struct with a field that has a fence and a session, to be its fence.
macro_rules! holder {
    ($holder:ident, $field:ident) => {
        impl $holder {
            /// What is held: a handle that may be cloned and handed on.
            pub fn fence(&self) -> &$crate::Fence {
                self.$field.fence()
            }

            /// The session that it is held with.
            pub fn session(&self) -> &$crate::Session {
                self.$field.session()
            }
        }

        /// It is its fence, and what else is said here: [`token`](crate::Fence::token), [`txn`](crate::Fence::txn),
        /// [`lost`](crate::Fence::lost) and the rest are the fence's.
        impl std::ops::Deref for $holder {
            type Target = $crate::Fence;

            fn deref(&self) -> &$crate::Fence {
                self.fence()
            }
        }
    };
}

/// `guard!(MutexGuard, unlock)`: for a struct with a field `owned`, the methods of a guard and its release.
macro_rules! guard {
    ($guard:ident, $release:ident) => {
        $crate::owned::holder!($guard, owned);

        impl $guard {
            /// The header of the answer that proved it to be ours. Go's `Header`.
            pub fn header(&self) -> &$crate::pb::etcdserverpb::ResponseHeader {
                self.owned.header()
            }

            /// Runs work until it ends or what is held is lost, whichever is first, then releases it. On a loss the
            /// work is dropped, wherever it waits: it must not have handed on what it does to other tasks.
            ///
            /// # Errors
            /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) with the reason, if it was lost before the work ended; or
            /// before the release, in which case the work had ended but may have outlived it. A release that fails
            /// otherwise goes on in the background, and the work's value is returned.
            ///
            /// # Cancel safety
            /// Dropping the future drops the work and releases in the background.
            pub async fn run<T>(self, work: impl Future<Output = T>) -> $crate::Result<T> {
                self.owned.run(work).await
            }

            /// Runs work that ends by itself when it is told: the token it is given is cancelled when what is held is
            /// lost. It is released after the work has ended, so what the work does last (flush, roll back) is never
            /// cut off.
            ///
            /// The work is not to write without a fence once the token is cancelled: it may be another's by then.
            ///
            /// # Errors
            /// As [`run`](Self::run), but always after the work has ended.
            ///
            /// # Cancel safety
            /// As [`run`](Self::run).
            pub async fn run_cooperative<T, F>(
                self,
                work: impl FnOnce(tokio_util::sync::CancellationToken) -> F,
            ) -> $crate::Result<T>
            where
                F: Future<Output = T>,
            {
                self.owned.run_cooperative(work).await
            }

            /// Releases it: one RPC, guarded by the key's create_revision, so that it never deletes another's key.
            ///
            /// # Errors
            /// [`ErrorKind::Lost`](crate::ErrorKind::Lost) if it was lost before: others may have held it in the
            /// meantime. [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) of the outcome
            /// [`Unknown`](crate::Outcome::Unknown) where an attempt was not answered and the next found the key gone: it
            /// is released, but whether it was lost before cannot be told. Any other error means that the release goes on
            /// in the background, until it is settled: there is no need to call again.
            ///
            /// # Cancel safety
            /// Dropping the future lets the release go on in the background.
            pub async fn $release(self) -> $crate::Result<()> {
                self.owned.release().await
            }
        }
    };
}

pub(crate) use {guard, holder};
