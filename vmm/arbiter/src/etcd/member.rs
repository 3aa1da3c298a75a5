//! A connection to one member of etcd: gRPC over HTTP/2, with TLS and a user's token where etcd
//! requires them.

use std::fmt::Write as _;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::EtcdOptions;
use super::api::{AuthenticateRequest, AuthenticateResponse, TxnRequest, TxnResponse};

/// TCP keepalive: detects, between questions, a member that has vanished.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// P9: upper bound of an answer in bytes. An answer holds two small records; a larger one is
/// refused.
const ANSWER_MAX: usize = 256 << 10;

/// One connection, and the token of its user.
pub(super) struct Member {
    rpc: Grpc<Channel>,
    /// The token sent with every request; `None` where etcd has no users.
    token: Option<AsciiMetadataValue>,
}

impl Member {
    /// Connects to `address`, `HOST:PORT`, and authenticates.
    pub(super) async fn connect(address: &str, options: &EtcdOptions) -> Result<Self, String> {
        let channel = channel(address, options).await?;
        let rpc = Grpc::new(channel).max_decoding_message_size(ANSWER_MAX);
        let mut member = Self { rpc, token: None };
        if let Some((name, password)) = &options.user {
            let request = AuthenticateRequest { name: name.clone(), password: password.clone() };
            let path = PathAndQuery::from_static("/etcdserverpb.Auth/Authenticate");
            let answer: AuthenticateResponse = member.call(path, request, options).await?;
            let token = answer
                .token
                .parse()
                .map_err(|_| "expected a token of printable characters, found others".to_owned())?;
            member.token = Some(token);
        }
        Ok(member)
    }

    /// Executes a transaction.
    pub(super) async fn txn(
        &mut self,
        txn: TxnRequest,
        options: &EtcdOptions,
    ) -> Result<TxnResponse, String> {
        self.call(PathAndQuery::from_static("/etcdserverpb.KV/Txn"), txn, options).await
    }

    async fn call<Q, A>(
        &mut self,
        path: PathAndQuery,
        question: Q,
        options: &EtcdOptions,
    ) -> Result<A, String>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut request = Request::new(question);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        self.rpc
            .ready()
            .await
            .map_err(|error| format!("expected an open connection, found: {}", chain(&error)))?;
        let answer = self.rpc.unary(request, path, ProstCodec::<Q, A>::default()).await;
        answer.map(tonic::Response::into_inner).map_err(|status| describe(&status, options))
    }
}

async fn channel(address: &str, options: &EtcdOptions) -> Result<Channel, String> {
    let tls = options.tls()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|error| format!("expected HOST:PORT in --arbiter, found: {error}"))?
        .tcp_keepalive(Some(KEEP_ALIVE))
        .tcp_nodelay(true);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls).map_err(|error| {
            format!(
                "expected PEM certificates in --arbiter-ca, --arbiter-cert and --arbiter-key, found: {}",
                chain(&error)
            )
        })?;
    }
    endpoint.connect().await.map_err(|error| {
        let hint = match scheme {
            "https" => "check the address, and that the authority of --arbiter-ca has signed etcd's certificate",
            _ => "check the address, and add --arbiter-ca if etcd requires TLS",
        };
        format!("expected a {scheme} connection, found: {}; {hint}", chain(&error))
    })
}

/// Describes etcd's error and what to change.
fn describe(status: &Status, options: &EtcdOptions) -> String {
    let message = status.message();
    let user = options.user.as_ref().map_or("nobody", |(name, _)| name);
    if message.contains("authentication failed") || message.contains("user name is empty") {
        return format!(
            "expected etcd to accept user `{user}`, found: {message}; check --arbiter-user and --arbiter-password-file"
        );
    }
    if message.contains("permission denied") {
        return format!(
            "expected user `{user}` to have read and write permission below /kemari/, found: {message}; grant it: \
             etcdctl role grant-permission ROLE --prefix=true readwrite /kemari/"
        );
    }
    format!("expected an answer, found: {message} ({:?})", status.code())
}

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}
