//! The ledger in Kubernetes: one IPClaim a claim, one write a change.
//!
//! The compare of every write is on `resourceVersion`, which API servers declare to be a decimal number that
//! rises with every write. As with etcd nothing is repeated here, and a write without an answer is unknown.

mod object;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::kube::api::{Api, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use ::kube::core::ObjectMeta;
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use tokio::time::sleep;

pub use self::object::{IPClaim, IPClaimSpec, NETWORK_LABEL, crd, network_token, object_name};
use self::object::{Unread, address_of};
use super::kube::{KubeStore, chain};
use super::{Failure, Ledger, Listed, Objects as _, StoreError, Swap, Unreadable, Versioned, describe};
use crate::claim::{Claim, LedgerName};

/// Pause after a watch that could not be had, so that whoever waits does not ask again and again.
const AFTER_A_FAILURE: Duration = Duration::from_millis(500);

/// Claims of one network as IPClaims. Clones share what they have seen.
#[derive(Clone)]
pub struct IPClaimLedger {
    store: KubeStore,
    network: Arc<str>,
    /// The objects as last seen: a write has to repeat what they bear beside the claim.
    seen: Arc<Mutex<HashMap<IpAddr, IPClaim>>>,
}

/// Who the definition is applied by.
const MANAGER: &str = "kube-ipam";

/// How a watch ended.
enum Followed {
    /// With a change, or without a reason: only a read can tell.
    Moved,
    /// The server does not remember that far back.
    TooOld,
}

// === impl IPClaimLedger ===

impl IPClaimLedger {
    /// A ledger for `network`; nothing is sent yet.
    pub fn new(store: KubeStore, network: &str) -> Self {
        Self { store, network: network.into(), seen: Arc::default() }
    }

    /// Whether the API server knows the kind.
    ///
    /// # Errors
    /// The API server could not be asked, or did not answer.
    pub async fn is_served(&self) -> Result<bool, StoreError> {
        match self.read(IpAddr::from([0, 0, 0, 0])).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_no_ledger() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts the definition of the kind in place if there is none; gives whether there was none. One that is there is
    /// left as it is, whatever release wrote it.
    ///
    /// # Errors
    /// The API server could not be asked, did not answer, or does not allow it.
    pub async fn define(&self) -> Result<bool, StoreError> {
        if self.is_served().await? {
            return Ok(false);
        }
        let definition = crd();
        let name = definition.metadata.name.as_deref().unwrap_or_default();
        let definitions: Api<CustomResourceDefinition> = Api::all(self.store.client().clone());
        // Unlike a creation, this can be allowed for one name.
        let applied = definitions.patch(name, &PatchParams::apply(MANAGER), &Patch::Apply(&definition)).await;
        let what = || format!("customresourcedefinitions {name}");
        applied.map(|_| true).map_err(|error| StoreError::new("apply", what(), Failure::Unknown(chain(&error))))
    }

    fn name(&self, address: IpAddr) -> String {
        object_name(&self.network, address)
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<IpAddr, IPClaim>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an object says, if it is what its name says.
    fn take_in(&self, verb: &'static str, object: IPClaim) -> Result<Versioned<Claim>, StoreError> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let corrupt = |why| StoreError::new(verb, describe::<IPClaim>(&name), Failure::Corrupt(why));
        self.claim_of(object).map_err(corrupt)
    }

    fn claim_of(&self, object: IPClaim) -> Result<Versioned<Claim>, String> {
        let claim = object.spec.claim.clone();
        if *object.spec.network != *self.network || object.metadata.name != Some(self.name(claim.address)) {
            let (address, network) = (claim.address, &object.spec.network);
            return Err(format!(
                "by its name it is not the claim on {address} in network {network:?} that it says it is"
            ));
        }
        let revision = revision(&object.metadata)?;
        self.seen().insert(claim.address, object);
        Ok(Versioned { value: claim, revision })
    }

    /// The object in this very version, if it was the last one seen.
    fn known(&self, address: IpAddr, version: i64) -> Option<IPClaim> {
        self.seen().get(&address).filter(|object| revision(&object.metadata) == Ok(version)).cloned()
    }

    /// Writes over the object, or deletes it, if it is still of the version `expected`.
    async fn change(&self, address: IpAddr, expected: i64, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        let stored = match self.known(address, expected) {
            Some(stored) => stored,
            None => {
                let standing = self.read(address).await?;
                match self.known(address, expected) {
                    Some(stored) => stored,
                    None => return Ok(Swap::Lost(standing)),
                }
            }
        };
        match claim {
            Some(claim) => {
                let object = IPClaimSpec::new(&self.network, claim).object(stored.metadata);
                let written = self.store.replace(&object).await;
                self.outcome(address, written).await
            }
            None => match self.store.delete(&stored).await {
                Ok(()) => {
                    self.seen().remove(&address);
                    Ok(Swap::Done(0))
                }
                Err(error) => self.outcome(address, Err(error)).await,
            },
        }
    }

    /// What came of a write; of a lost one, what stands there instead.
    async fn outcome(&self, address: IpAddr, written: Result<IPClaim, StoreError>) -> Result<Swap, StoreError> {
        match written {
            Ok(object) => Ok(Swap::Done(self.take_in("update", object)?.revision)),
            Err(StoreError { failure: Failure::Exists | Failure::Conflict | Failure::Absent, .. }) => {
                Ok(Swap::Lost(self.read(address).await?))
            }
            Err(error) => Err(of_kind(error)),
        }
    }

    /// Waits for the first event on an object after `version`.
    async fn follow(&self, api: &Api<IPClaim>, name: &str, version: &str) -> Result<Followed, ::kube::Error> {
        let params = WatchParams::default().fields(&format!("metadata.name={name}")).disable_bookmarks();
        let events = api.watch(&params, version).await?;
        pin_mut!(events);
        loop {
            match events.next().await.transpose()? {
                Some(WatchEvent::Bookmark(_)) => {}
                Some(WatchEvent::Error(status)) if status.code == 410 => return Ok(Followed::TooOld),
                Some(WatchEvent::Error(status)) => return Err(::kube::Error::Api(status)),
                _ => return Ok(Followed::Moved),
            }
        }
    }

    async fn follow_from(&self, address: IpAddr, since: i64) -> Result<(), ::kube::Error> {
        let (api, name) = (Api::<IPClaim>::all(self.store.client().clone()), self.name(address));
        match self.follow(&api, &name, &since.to_string()).await {
            Ok(Followed::TooOld) => {}
            Err(::kube::Error::Api(status)) if status.code == 410 => {}
            other => return other.map(drop),
        }
        // Nothing that happened since is lost: the list says what stands, and from which version on to watch.
        let listed = api.list(&ListParams::default().fields(&format!("metadata.name={name}"))).await?;
        if listed.items.first().map(|object| revision(&object.metadata)) != Some(Ok(since)) {
            return Ok(());
        }
        self.follow(&api, &name, listed.metadata.resource_version.as_deref().unwrap_or("0")).await.map(drop)
    }
}

impl Ledger for IPClaimLedger {
    fn name(&self) -> LedgerName {
        LedgerName::objects(&self.network)
    }

    async fn read(&self, address: IpAddr) -> Result<Option<Versioned<Claim>>, StoreError> {
        let found = self.store.get::<IPClaim>(None, &self.name(address)).await.map_err(of_kind)?;
        if found.is_none() {
            self.seen().remove(&address);
        }
        found.map(|object| self.take_in("get", object)).transpose()
    }

    async fn listed(&self) -> Result<Listed, StoreError> {
        let selector = format!("{NETWORK_LABEL}={}", network_token(&self.network));
        let objects: Vec<Unread> = self.store.list(&selector).await.map_err(of_kind)?;
        let mut listed = Listed::default();
        for object in objects {
            let name = object.metadata.name.clone().unwrap_or_default();
            match object.read().map_err(|why| why.to_string()).and_then(|object| self.claim_of(object)) {
                Ok(claim) => listed.claims.push(claim),
                Err(why) => listed.unreadable.push(Unreadable {
                    address: address_of(&name),
                    why,
                    remedy: remedy(&name),
                    record: describe::<IPClaim>(&name),
                }),
            }
        }
        listed.claims.sort_by_key(|claim| claim.value.address);
        Ok(listed)
    }

    async fn swap(&self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        match (expected, claim) {
            (Some(revision), claim) => self.change(address, revision, claim).await,
            (None, Some(claim)) => {
                let object = IPClaimSpec::new(&self.network, claim).object(ObjectMeta::default());
                let written = self.store.create(&object).await;
                self.outcome(address, written).await
            }
            (None, None) => {
                let standing = self.read(address).await?;
                Ok(if standing.is_none() { Swap::Done(0) } else { Swap::Lost(standing) })
            }
        }
    }

    async fn changed(&self, address: IpAddr, revision: i64) -> Result<(), StoreError> {
        let followed = self.follow_from(address, revision).await;
        let Err(error) = followed else { return Ok(()) };
        sleep(AFTER_A_FAILURE).await;
        let failure = Failure::Unknown(chain(&error));
        Err(StoreError::new("watch", describe::<IPClaim>(&self.name(address)), failure))
    }
}

/// What a person does about an IPClaim that cannot be read.
pub(crate) fn remedy(name: &str) -> String {
    format!(
        "mend it by `kubectl edit ipclaim {name}`, or delete it, if its address may go to whoever claims it next: `kubectl \
         delete ipclaim {name}`"
    )
}

/// The revision that an object's version is.
fn revision(metadata: &ObjectMeta) -> Result<i64, String> {
    let version = metadata.resource_version.as_deref().unwrap_or_default();
    let number = version.parse().ok().filter(|number| *number > 0);
    number
        .ok_or_else(|| format!("its resourceVersion {version:?} is no decimal number, so versions cannot be compared"))
}

/// A kind that is not served is a ledger that is not there.
fn of_kind(error: StoreError) -> StoreError {
    match error.failure {
        Failure::NoKind => StoreError { failure: Failure::NoLedger, ..error },
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_decimal_number_is_a_revision() {
        let of = |version: &str| {
            revision(&ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() })
        };
        assert_eq!((of("7"), of("9223372036854775807")), (Ok(7), Ok(i64::MAX)));
        for wrong in ["", "0", "-1", "a7", "7a", "9223372036854775808"] {
            assert!(of(wrong).unwrap_err().contains(&format!("{wrong:?} is no decimal number")), "{wrong}");
        }
    }
}
