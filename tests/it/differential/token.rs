//! For whom a client speaks.

use std::sync::{Arc, Mutex};

use http::{HeaderValue, Request};

/// What a client sends with each call, once it has one.
#[derive(Clone, Default)]
pub(super) struct Token(Arc<Mutex<Option<HeaderValue>>>);

impl Token {
    pub(super) fn set(&self, token: &str) {
        *self.0.lock().expect("no panic") = Some(token.parse().expect("a header's value"));
    }

    pub(super) fn put_on<B>(&self, mut request: Request<B>) -> Request<B> {
        if let Some(token) = &*self.0.lock().expect("no panic") {
            request.headers_mut().insert("token", token.clone());
        }
        request
    }
}
