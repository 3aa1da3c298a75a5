//! The two keys of a virtual machine in etcd, and the transactions on them.
//!
//! `/kemari/NAME/term` holds the record of the current term, written once a term, only ever by a
//! transaction that names the record it replaces: so the term only grows, and each is won once (P2).
//! `/kemari/NAME/beat` is written by the holder, to renew its lease, in transactions that name the
//! term's record; its mod revision tells a watcher of every change. Records are compared as whole
//! values: they name their process by a number that is never used again, so equal values are the same
//! record, also after etcd was restored from a backup.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_client::{Channel, Client, Compare, CompareOp, Error, Txn, TxnOp, TxnOpResponse};
use ft_core::arbiter::{Held, Reply, Snapshot, Written};
use tonic::transport::Endpoint;

use super::EtcdOptions;
use crate::arbiter::ArbiterError;

/// A connection with one member at a time.
pub(super) struct Store {
    options: EtcdOptions,
    vm: String,
    term_key: String,
    beat_key: String,
    /// Which of the endpoints is asked.
    current: usize,
    client: Option<Client>,
}

impl Store {
    pub(super) fn new(options: EtcdOptions, vm: &str) -> Self {
        let term_key = format!("/kemari/{vm}/term");
        let beat_key = format!("/kemari/{vm}/beat");
        Self { options, vm: vm.to_owned(), term_key, beat_key, current: 0, client: None }
    }

    pub(super) fn vm(&self) -> &str {
        &self.vm
    }

    pub(super) fn options(&self) -> &EtcdOptions {
        &self.options
    }

    /// Reads both keys, by a quorum.
    pub(super) async fn look(&mut self) -> Result<Snapshot, ArbiterError> {
        let (term, beat) = (self.term_key.as_str(), self.beat_key.as_str());
        let txn = Txn::new().and_then(vec![TxnOp::get(term, None), TxnOp::get(beat, None)]);
        let (_, answers) = self.txn(txn).await?;
        let [TxnOpResponse::Get(term), TxnOpResponse::Get(beat)] = answers.as_slice() else {
            return Err(self.wrong("two values", "something else"));
        };
        let term = term.kvs().first().map(|pair| self.decode(pair.value())).transpose()?;
        let beat = beat.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision);
        Ok(Snapshot { term, beat })
    }

    /// Replaces what `seen` shows by `new`, and renews with it; whether nothing has changed since.
    pub(super) async fn replace(
        &mut self,
        seen: &Snapshot,
        new: &Written,
    ) -> Result<bool, ArbiterError> {
        let as_seen = match &seen.term {
            Some(term) => {
                Compare::value(self.term_key.as_str(), CompareOp::Equal, term.value.clone())
            }
            None => Compare::version(self.term_key.as_str(), CompareOp::Equal, 0),
        };
        let no_beat = Compare::mod_revision(self.beat_key.as_str(), CompareOp::Equal, seen.beat);
        let txn = Txn::new().when(vec![as_seen, no_beat]).and_then(vec![
            TxnOp::put(self.term_key.as_str(), new.value.clone(), None),
            TxnOp::put(self.beat_key.as_str(), new.held.record.holder.as_str(), None),
        ]);
        Ok(self.txn(txn).await?.0)
    }

    /// Writes the beat if the term's record is still `mine`.
    pub(super) async fn renew(
        &mut self,
        mine: &Written,
    ) -> Result<Reply<ArbiterError>, ArbiterError> {
        let still = Compare::value(self.term_key.as_str(), CompareOp::Equal, mine.value.clone());
        let txn = Txn::new()
            .when(vec![still])
            .and_then(vec![TxnOp::put(
                self.beat_key.as_str(),
                mine.held.record.holder.as_str(),
                None,
            )])
            .or_else(vec![TxnOp::get(self.term_key.as_str(), None)]);
        match self.txn(txn).await? {
            (true, _) => Ok(Reply::Renewed),
            (false, answers) => match answers.as_slice() {
                [TxnOpResponse::Get(term)] => {
                    let found = term.kvs().first().map(|pair| self.decode(pair.value()));
                    Ok(Reply::Found(found.transpose()?))
                }
                _ => Err(self.wrong("one value", "something else")),
            },
        }
    }

    /// How `held` is to be written, with the time for people to read.
    pub(super) fn encode(&self, mut held: Held) -> Result<Written, ArbiterError> {
        if held.record.won_at == 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            held.record.won_at = now.map_or(0, |since| since.as_secs());
        }
        let value = serde_json::to_vec(&held).map_err(|source| self.damaged(source))?;
        Ok(Written { held, value })
    }

    fn decode(&self, value: &[u8]) -> Result<Written, ArbiterError> {
        let held = serde_json::from_slice(value).map_err(|source| self.damaged(source))?;
        Ok(Written { held, value: value.to_vec() })
    }

    fn damaged(&self, source: serde_json::Error) -> ArbiterError {
        ArbiterError::Record { path: self.term_key.clone().into(), source }
    }

    /// One transaction with the current member. After a failure the next one is asked, by a new
    /// connection: whatever was wrong with this one may be the connection, its token, or the member.
    /// A transaction that is given up may still be carried out later.
    async fn txn(&mut self, txn: Txn) -> Result<(bool, Vec<TxnOpResponse>), ArbiterError> {
        let patience = self.options.patience();
        let answer = match tokio::time::timeout(patience, self.ask(txn)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!(
                "expected an answer within {patience:?}, found none; check that etcd runs there, has a leader, \
                 and answers well within --arbiter-lease"
            )),
        };
        answer.map_err(|problem| {
            let endpoint = self.endpoint().to_owned();
            self.client = None;
            self.current = (self.current + 1) % self.options.endpoints.len();
            ArbiterError::Etcd { endpoint, problem }
        })
    }

    async fn ask(&mut self, txn: Txn) -> Result<(bool, Vec<TxnOpResponse>), String> {
        let client = match &mut self.client {
            Some(client) => client,
            None => {
                let client = connect(self.endpoint(), &self.options).await?;
                self.client.insert(client)
            }
        };
        let answer = client.kv_client().txn(txn).await;
        let answer = answer.map_err(|error| describe(&error, &self.options))?;
        Ok((answer.succeeded(), answer.op_responses()))
    }

    fn wrong(&self, expected: &str, found: &str) -> ArbiterError {
        let problem = format!("expected {expected}, found {found}");
        ArbiterError::Etcd { endpoint: self.endpoint().to_owned(), problem }
    }

    /// The member that is asked.
    pub(super) fn endpoint(&self) -> &str {
        &self.options.endpoints[self.current]
    }

    /// The key of the term, for people.
    pub(super) fn term_key(&self) -> &str {
        &self.term_key
    }
}

async fn connect(address: &str, options: &EtcdOptions) -> Result<Client, String> {
    /// Notices a member that is gone without a word, between questions.
    const KEEP_ALIVE: Duration = Duration::from_secs(10);
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
    let channel = endpoint.connect().await.map_err(|error| {
        let hint = match scheme {
            "https" => "check the address, and that --arbiter-ca vouches for etcd's certificate",
            _ => "check the address, and give --arbiter-ca if etcd wants TLS",
        };
        format!("expected a {scheme} connection, found: {}; {hint}", chain(&error))
    })?;
    let client = Client::from_channel(Channel::Tonic(channel), options.connect_options()).await;
    client.map_err(|error| describe(&error, options))
}

/// What etcd says, and what to change.
fn describe(error: &Error, options: &EtcdOptions) -> String {
    let Error::GRpcStatus(status) = error else {
        return format!("expected an answer, found: {}", chain(error));
    };
    let message = status.message();
    let user = options.user.as_ref().map_or("nobody", |(name, _)| name);
    if message.contains("authentication failed") || message.contains("user name is empty") {
        return format!(
            "expected etcd to let `{user}` in, found: {message}; check --arbiter-user and --arbiter-password-file"
        );
    }
    if message.contains("permission denied") {
        return format!(
            "expected `{user}` to have the right to read and write below /kemari/, found: {message}; grant it: \
             etcdctl role grant-permission ROLE --prefix=true readwrite /kemari/"
        );
    }
    format!("expected an answer, found: {message} ({:?})", status.code())
}

/// An error with its causes, on one line.
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
