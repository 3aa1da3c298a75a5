//! The keys of a virtual machine in etcd, and the transactions on them.
//!
//! `/kemari/NAME/term` holds the record of the current term. Each term is written once, by a
//! transaction that names the record it replaces: so the term only grows, and each is won once
//! (P2).
//!
//! The holder writes `/kemari/NAME/beat` to renew its lease, in transactions that name the term's
//! record. The key's mod revision shows each renewal to a watcher. Transactions compare whole
//! records: each record names its process by a number that is never reused, so equal values are the
//! same record, even after a restore of etcd from a backup. The holder renews only if the key's
//! revision is at least that of its own last confirmed renewal: a restore that undid this renewal
//! may also have undone another machine's term.
//!
//! `/kemari/NAME/id` is created once. A primary writes `/kemari/NAME/mark` for each session, and
//! its standby writes `/kemari/NAME/counter-mark`, so that each side sees that both use the same
//! etcd. The cluster's number is not enough: etcd computes it from its members' names and
//! addresses, and two clusters with the default names have the same number.

use std::time::{SystemTime, UNIX_EPOCH};

use ft_core::arbiter::{Held, Reply, Snapshot, Written};
use kemari_support::random::random_id;

use super::EtcdOptions;
use super::api::{Compare, KeyValue, RequestOp, Response, ResponseOp, TxnRequest, TxnResponse};
use super::member::Member;
use crate::{ArbiterError, record};

/// The side of a pair that writes a mark for a session.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Primary,
    Standby,
}

/// What distinguishes one etcd from another.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) id: String,
    pub(super) mark: String,
    pub(super) counter_mark: String,
}

/// The keys and the connection to etcd, one member at a time.
pub(super) struct Store {
    options: EtcdOptions,
    vm: String,
    term_key: String,
    renewal_key: String,
    id_key: String,
    mark_key: String,
    counter_mark_key: String,
    /// The revision of this process's last confirmed renewal.
    last_renewal: i64,
    /// The first cluster that answered; `None`: none has answered yet.
    cluster: Option<u64>,
    /// Index of the endpoint to ask.
    current: usize,
    member: Option<Member>,
}

impl Store {
    pub(super) fn new(options: EtcdOptions, vm: &str) -> Self {
        let term_key = format!("/kemari/{vm}/term");
        let renewal_key = format!("/kemari/{vm}/beat");
        Self {
            options,
            vm: vm.to_owned(),
            term_key,
            renewal_key,
            id_key: format!("/kemari/{vm}/id"),
            mark_key: format!("/kemari/{vm}/mark"),
            counter_mark_key: format!("/kemari/{vm}/counter-mark"),
            last_renewal: 0,
            cluster: None,
            current: 0,
            member: None,
        }
    }

    pub(super) fn vm(&self) -> &str {
        &self.vm
    }

    pub(super) fn options(&self) -> &EtcdOptions {
        &self.options
    }

    /// Reads the term and the renewal, with a quorum.
    pub(super) async fn look(&mut self) -> Result<Snapshot, ArbiterError> {
        let txn = TxnRequest {
            success: vec![RequestOp::get(&self.term_key), RequestOp::get(&self.renewal_key)],
            ..TxnRequest::default()
        };
        let answer = self.txn(txn).await?;
        let [term, renewal] = self.values(answer)?;
        let term = term.map(|pair| self.decode(pair.value)).transpose()?;
        let renewal = renewal.map_or(0, |pair| pair.mod_revision);
        if renewal < self.last_renewal {
            // P2: etcd has lost a renewal of this process; other machines' terms may be lost as
            // well.
            let problem = format!(
                "expected {} at revision {} or later, as this process has written it, found {renewal}: etcd's data \
                 went back to an earlier state. Another machine may also run this guest: stop one of the two",
                self.renewal_key, self.last_renewal
            );
            return Err(ArbiterError::Etcd { endpoint: self.endpoint().to_owned(), problem });
        }
        Ok(Snapshot { term, renewal })
    }

    /// Replaces the term `seen` by `new` and renews the lease; `false`: the state has changed since
    /// `seen`.
    pub(super) async fn replace(
        &mut self,
        seen: &Snapshot,
        new: &Written,
    ) -> Result<bool, ArbiterError> {
        let as_seen = match &seen.term {
            Some(term) => Compare::value_is(&self.term_key, term.value.clone()),
            None => Compare::is_missing(&self.term_key),
        };
        let no_renewal = Compare::mod_revision_is(&self.renewal_key, seen.renewal);
        let txn = TxnRequest {
            compare: vec![as_seen, no_renewal],
            success: vec![
                RequestOp::put(&self.term_key, new.value.clone()),
                RequestOp::put(&self.renewal_key, new.held.record.holder.as_str()),
            ],
            failure: Vec::new(),
        };
        let answer = self.txn(txn).await?;
        if answer.succeeded {
            self.last_renewal = answer.header().revision;
        }
        Ok(answer.succeeded)
    }

    /// Writes the renewal if the term's record is still `mine`.
    pub(super) async fn renew(
        &mut self,
        mine: &Written,
    ) -> Result<Reply<ArbiterError>, ArbiterError> {
        let txn = TxnRequest {
            compare: vec![
                Compare::value_is(&self.term_key, mine.value.clone()),
                Compare::mod_revision_is_at_least(&self.renewal_key, self.last_renewal),
            ],
            success: vec![RequestOp::put(&self.renewal_key, mine.held.record.holder.as_str())],
            failure: vec![RequestOp::get(&self.term_key)],
        };
        let answer = self.txn(txn).await?;
        if answer.succeeded {
            self.last_renewal = answer.header().revision;
            return Ok(Reply::Renewed);
        }
        let [found] = self.values(answer)?;
        Ok(Reply::Found(found.map(|pair| self.decode(pair.value)).transpose()?))
    }

    /// The identity of this etcd for this machine, and its marks.
    pub(super) async fn identify(&mut self) -> Result<Identity, ArbiterError> {
        let make = TxnRequest {
            compare: vec![Compare::is_missing(&self.id_key)],
            success: vec![RequestOp::put(&self.id_key, random_id())],
            failure: Vec::new(),
        };
        self.txn(make).await?;
        let keys = [&self.id_key, &self.mark_key, &self.counter_mark_key];
        let success = keys.map(|key| RequestOp::get(key)).into();
        let answer = self.txn(TxnRequest { success, ..TxnRequest::default() }).await?;
        let cluster = answer.header().cluster_id;
        let [id, mark, counter_mark] = self.values::<3>(answer)?.map(|found| {
            let text = found.map(|pair| String::from_utf8_lossy(&pair.value).into_owned());
            text.unwrap_or_else(|| "none".to_owned())
        });
        Ok(Identity { id: format!("{id} in cluster {cluster:x}"), mark, counter_mark })
    }

    /// Writes a new mark, then does what [`identify`](Self::identify) does. Returns the mark as
    /// written here, not as read: a copy between two etcds may have put an older mark there.
    pub(super) async fn leave_mark(&mut self, side: Side) -> Result<Identity, ArbiterError> {
        let word = random_id();
        let key = match side {
            Side::Primary => &self.mark_key,
            Side::Standby => &self.counter_mark_key,
        };
        let success = vec![RequestOp::put(key, word.as_str())];
        self.txn(TxnRequest { success, ..TxnRequest::default() }).await?;
        let found = self.identify().await?;
        Ok(match side {
            Side::Primary => Identity { mark: word, ..found },
            Side::Standby => Identity { counter_mark: word, ..found },
        })
    }

    /// Encodes `held`, and adds the time at which the term was won, which people read.
    pub(super) fn encode(&self, mut held: Held) -> Result<Written, ArbiterError> {
        if held.record.won_at == 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            held.record.won_at = now.map_or(0, |since| since.as_secs());
        }
        let value = record::encode(&held, held.set.is_some(), false);
        let value = value.map_err(|source| self.damaged(source))?;
        Ok(Written { held, value })
    }

    fn decode(&self, value: Vec<u8>) -> Result<Written, ArbiterError> {
        let read = record::decode(&value, |held: &Held| held.set.is_some());
        let held = match read {
            Ok(read) if read.rest.is_empty() => read.record,
            Ok(_) => {
                let more = "expected one record, found more behind it";
                return Err(self.damaged(serde::de::Error::custom(more)));
            }
            Err(source) => return Err(self.damaged(source)),
        };
        Ok(Written { held, value })
    }

    fn damaged(&self, source: serde_json::Error) -> ArbiterError {
        ArbiterError::Record { path: self.term_key.clone().into(), source }
    }

    /// Runs a transaction with the current member. After a failure, the next call connects to the
    /// next member: the connection, its token or the member may be at fault. etcd may still execute
    /// a transaction that timed out here.
    async fn txn(&mut self, txn: TxnRequest) -> Result<TxnResponse, ArbiterError> {
        let patience = self.options.patience();
        let answer = match tokio::time::timeout(patience, self.ask(txn)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!(
                "expected an answer within {patience:?}, found none; check that etcd runs there, has a leader, and \
                 answers in much less time than --arbiter-lease"
            )),
        };
        let answer = answer.and_then(|answer| self.check_cluster(answer));
        answer.map_err(|problem| {
            let endpoint = self.endpoint().to_owned();
            self.member = None;
            self.current = (self.current + 1) % self.options.endpoints.len();
            ArbiterError::Etcd { endpoint, problem }
        })
    }

    /// P2: a different cluster is a different arbiter.
    fn check_cluster(&mut self, answer: TxnResponse) -> Result<TxnResponse, String> {
        let found = answer.header().cluster_id;
        let expected = *self.cluster.get_or_insert(found);
        if found == expected {
            return Ok(answer);
        }
        Err(format!(
            "expected cluster {expected:x}, as in earlier answers, found {found:x}; all addresses in --arbiter must \
             belong to one etcd cluster, and its data must not go back"
        ))
    }

    async fn ask(&mut self, txn: TxnRequest) -> Result<TxnResponse, String> {
        let member = match &mut self.member {
            Some(member) => member,
            None => {
                let member = Member::connect(self.endpoint(), &self.options).await?;
                self.member.insert(member)
            }
        };
        member.txn(txn, &self.options).await
    }

    /// The results of a transaction that reads `N` keys; `None`: the key does not exist.
    fn values<const N: usize>(
        &self,
        answer: TxnResponse,
    ) -> Result<[Option<KeyValue>; N], ArbiterError> {
        let found = answer.responses.len();
        let values: Option<Vec<_>> = answer.responses.into_iter().map(value).collect();
        let problem = || format!("expected {N} values, found {found} answers of another kind");
        values.and_then(|values| values.try_into().ok()).ok_or_else(|| ArbiterError::Etcd {
            endpoint: self.endpoint().to_owned(),
            problem: problem(),
        })
    }

    /// The address of the member to ask.
    pub(super) fn endpoint(&self) -> &str {
        &self.options.endpoints[self.current]
    }

    /// The key of the term, for messages.
    pub(super) fn term_key(&self) -> &str {
        &self.term_key
    }
}

fn value(op: ResponseOp) -> Option<Option<KeyValue>> {
    match op.response? {
        Response::Range(range) => Some(range.kvs.into_iter().next()),
        Response::Put(_) => None,
    }
}
