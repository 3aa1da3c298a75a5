//! The subset of etcd's API that kemari uses, declared by hand (etcd's `rpc.proto` and `kv.proto`,
//! version 3.4 and later).
//!
//! Generating these messages would need `protoc`; a build of this project needs only the Rust
//! toolchain and a linker. Field numbers and types are etcd's public API and do not change. A read
//! skips fields that are not declared here; a write leaves them at their default.
//!
//! etcd's own tools use this interface too. etcd's JSON gateway would need no protobuf, but an
//! operator can disable it, it does not identify users by the names in their certificates, and it
//! adds a second client between a question and its answer.

use prost::{Enumeration, Message, Oneof};

/// `KeyValue`: a key and its value.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    /// The revision of the last change; it only grows.
    #[prost(int64, tag = "3")]
    pub(super) mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) value: Vec<u8>,
}

/// `RangeRequest` for one key.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// `RangeResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    pub(super) kvs: Vec<KeyValue>,
}

/// `PutRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `PutResponse`: kemari uses none of its fields.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct PutResponse {}

/// `RequestOp`: one step of a transaction.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RequestOp {
    #[prost(oneof = "Request", tags = "1, 2")]
    request: Option<Request>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Request {
    #[prost(message, tag = "1")]
    Range(RangeRequest),
    #[prost(message, tag = "2")]
    Put(PutRequest),
}

impl RequestOp {
    pub(super) fn get(key: &str) -> Self {
        let range = RangeRequest { key: key.as_bytes().to_vec() };
        Self { request: Some(Request::Range(range)) }
    }

    pub(super) fn put(key: &str, value: impl Into<Vec<u8>>) -> Self {
        let put = PutRequest { key: key.as_bytes().to_vec(), value: value.into() };
        Self { request: Some(Request::Put(put)) }
    }
}

/// `ResponseOp`: the result of a step.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ResponseOp {
    #[prost(oneof = "Response", tags = "1, 2")]
    pub(super) response: Option<Response>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Response {
    #[prost(message, tag = "1")]
    Range(RangeResponse),
    #[prost(message, tag = "2")]
    Put(PutResponse),
}

/// `Compare`: a condition of a transaction.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Compare {
    #[prost(enumeration = "CompareResult", tag = "1")]
    result: i32,
    #[prost(enumeration = "CompareTarget", tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(oneof = "TargetUnion", tags = "4, 6, 7")]
    union: Option<TargetUnion>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
enum CompareResult {
    Equal = 0,
    Greater = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
enum CompareTarget {
    Version = 0,
    Mod = 2,
    Value = 3,
}

#[derive(Clone, PartialEq, Oneof)]
enum TargetUnion {
    #[prost(int64, tag = "4")]
    Version(i64),
    #[prost(int64, tag = "6")]
    ModRevision(i64),
    #[prost(bytes, tag = "7")]
    Value(Vec<u8>),
}

impl Compare {
    /// True if the key has this value.
    pub(super) fn value_is(key: &str, value: Vec<u8>) -> Self {
        Self::equal(key, CompareTarget::Value, TargetUnion::Value(value))
    }

    /// True if the key last changed in this revision; 0: the key does not exist.
    pub(super) fn mod_revision_is(key: &str, revision: i64) -> Self {
        Self::equal(key, CompareTarget::Mod, TargetUnion::ModRevision(revision))
    }

    /// True if the key last changed in this revision or a later one.
    pub(super) fn mod_revision_is_at_least(key: &str, revision: i64) -> Self {
        let union = TargetUnion::ModRevision(revision.saturating_sub(1));
        let result = CompareResult::Greater.into();
        Self { result, ..Self::equal(key, CompareTarget::Mod, union) }
    }

    /// True if the key does not exist.
    pub(super) fn is_missing(key: &str) -> Self {
        Self::equal(key, CompareTarget::Version, TargetUnion::Version(0))
    }

    fn equal(key: &str, target: CompareTarget, union: TargetUnion) -> Self {
        Self {
            result: CompareResult::Equal.into(),
            target: target.into(),
            key: key.as_bytes().to_vec(),
            union: Some(union),
        }
    }
}

/// `TxnRequest`: executes `success` if all conditions in `compare` hold, otherwise `failure`. etcd
/// executes a transaction atomically and linearizably (P2).
#[derive(Clone, PartialEq, Message)]
pub(super) struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub(super) success: Vec<RequestOp>,
    #[prost(message, repeated, tag = "3")]
    pub(super) failure: Vec<RequestOp>,
}

/// `ResponseHeader`: describes the cluster and the store.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ResponseHeader {
    /// The cluster's id; it changes when the cluster is created anew.
    #[prost(uint64, tag = "1")]
    pub(super) cluster_id: u64,
    /// The store's revision at this request; for a write, the revision that the write created.
    #[prost(int64, tag = "3")]
    pub(super) revision: i64,
}

/// `TxnResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(bool, tag = "2")]
    pub(super) succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    pub(super) responses: Vec<ResponseOp>,
}

impl TxnResponse {
    pub(super) fn header(&self) -> ResponseHeader {
        self.header.unwrap_or_default()
    }
}

/// `AuthenticateRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthenticateRequest {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) password: String,
}

/// `AuthenticateResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthenticateResponse {
    /// Goes into the metadata of each later request.
    #[prost(string, tag = "2")]
    pub(super) token: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with the bytes that etcd's own tools write, so that the field numbers cannot drift.
    #[test]
    fn a_transaction_is_written_as_etcd_reads_it() {
        let txn = TxnRequest {
            compare: vec![
                Compare::value_is("k", b"v".to_vec()),
                Compare::mod_revision_is("b", 300),
                Compare::is_missing("m"),
                Compare::mod_revision_is_at_least("b", 8),
            ],
            success: vec![RequestOp::put("k", "w")],
            failure: vec![RequestOp::get("k")],
        };
        #[rustfmt::skip]
        let expected = [
            // compare: target VALUE, key, value
            0x0a, 8, 0x10, 3, 0x1a, 1, b'k', 0x3a, 1, b'v',
            // compare: target MOD, key, mod_revision 300
            0x0a, 8, 0x10, 2, 0x1a, 1, b'b', 0x30, 0xac, 0x02,
            // compare: target VERSION (the default), key, version 0 (encoded although zero, as a
            // member of a oneof)
            0x0a, 5, 0x1a, 1, b'm', 0x20, 0,
            // compare: result GREATER, target MOD, key, mod_revision 7
            0x0a, 9, 0x08, 1, 0x10, 2, 0x1a, 1, b'b', 0x30, 7,
            // success: request_put: key, value
            0x12, 8, 0x12, 6, 0x0a, 1, b'k', 0x12, 1, b'w',
            // failure: request_range: key
            0x1a, 5, 0x0a, 3, 0x0a, 1, b'k',
        ];
        assert_eq!(txn.encode_to_vec(), expected);
    }

    /// A response as etcd sends it, including fields that this module does not declare.
    #[test]
    fn an_answer_is_read_and_what_is_not_asked_for_is_skipped() {
        #[rustfmt::skip]
        let bytes = [
            // header: cluster 5, revision 7
            0x0a, 4, 0x08, 5, 0x18, 7,
            // succeeded
            0x10, 1,
            // responses: response_range: header, kvs (key, create_revision, mod_revision, version,
            // value), count
            0x1a, 21, 0x0a, 19, 0x0a, 0, 0x12, 13,
                0x0a, 1, b'k', 0x10, 5, 0x18, 7, 0x20, 2, 0x2a, 2, b'v', b'w',
                0x20, 1,
            // responses: response_put: header
            0x1a, 4, 0x12, 2, 0x0a, 0,
        ];
        let answer = TxnResponse::decode(bytes.as_slice()).expect("it is well-formed");
        assert!(answer.succeeded);
        assert_eq!(answer.header(), ResponseHeader { cluster_id: 5, revision: 7 });
        let pair = KeyValue { key: b"k".to_vec(), mod_revision: 7, value: b"vw".to_vec() };
        let expected = [
            Some(Response::Range(RangeResponse { kvs: vec![pair] })),
            Some(Response::Put(PutResponse {})),
        ];
        assert_eq!(
            answer.responses.iter().map(|op| op.response.clone()).collect::<Vec<_>>(),
            expected
        );
    }
}
