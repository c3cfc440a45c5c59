//! A fake etcd that speaks the real protocol.
