//! Messages to bytes and back: prost's way, in buffers of etcd's measure.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// What most of etcd's messages fit in. tonic takes 8 KiB for every message each way, and a reply keeps that in memory
/// for as long as one key or value of it is kept: the bytes are not copied out of it.
const BUFFER: usize = 1024;
/// tonic's own: how much is gathered of a stream before it is handed on.
const YIELD: usize = 32 * 1024;

/// The codec of all clients and servers here.
#[derive(Debug)]
pub(crate) struct SmallBuffers<T, U>(PhantomData<fn(T) -> U>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(BUFFER, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(BUFFER, YIELD))
    }
}
