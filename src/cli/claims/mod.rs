//! `claims`, also `show --claims`: who owns which fixed address, and which pod has it.

mod moving;
mod transfer;

use anyhow::Result;
use clap::{Args, Subcommand};
use jiff::Timestamp;

use self::moving::Move;
use super::Outcome;
use super::connect::Connection;
use super::output::{self, Format, NONE};
use crate::claim::Claim;
use crate::store::Ledger as _;

/// What is asked for.
#[derive(Args, Debug, Clone, Default)]
pub(super) struct Claims {
    /// Only claims of owners in this namespace.
    #[arg(short, long)]
    pub namespace: Option<String>,
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// What is done with the claims, if not listing them.
#[derive(Subcommand, Debug, Clone)]
pub(super) enum Action {
    /// Carries all claims of the network from etcd to IPClaims, or back.
    Move(Move),
}

impl Claims {
    pub(super) async fn run(&self, connection: &Connection, format: Format) -> Result<Outcome> {
        if let Some(Action::Move(wanted)) = &self.action {
            return wanted.run(connection, format).await;
        }
        let (site, store) = connection.open().await?;
        let ledger = site.needed_ledger(&store).await?;
        let listed = ledger.listed().await?;
        let claims = listed.claims.into_iter().map(|claim| claim.value);
        let wanted: Vec<Claim> = claims.filter(|claim| self.wants(claim)).collect();
        listed.unreadable.iter().for_each(|record| eprintln!("{record}"));
        output::print(format, &wanted, || table(&wanted) + &carried(&wanted))
    }

    fn wants(&self, claim: &Claim) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| *namespace == claim.owner.namespace)
    }
}

/// Said where claims are shown that decide nothing any more.
fn carried(claims: &[Claim]) -> String {
    let ledger = claims.iter().find_map(|claim| claim.moved.as_ref());
    ledger.map_or_else(String::new, |ledger| {
        format!("\n\nClaims here were carried to {ledger}, and what stands there decides; name it by --ledger.")
    })
}

fn table(claims: &[Claim]) -> String {
    let now = Timestamp::now();
    let rows = claims.iter().map(|claim| {
        let handing = claim.handing_over(now).map(|kept| format!("handing over to {}", kept.pod));
        let (address, owner) = (claim.address.to_string(), claim.owner.to_string());
        match &claim.holder {
            Some(holder) => {
                let pod = handing.map_or_else(|| holder.pod.clone(), |handing| format!("{}, {handing}", holder.pod));
                [address, owner, pod, holder.node.clone(), output::time(holder.since)]
            }
            None => [address, owner, handing.unwrap_or_else(|| NONE.into()), NONE.into(), NONE.into()],
        }
    });
    output::table(["ADDRESS", "OWNER", "HOLDER", "NODE", "SINCE"], rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(namespace: &str, holder: bool) -> Claim {
        let holder = holder.then(|| {
            json!({
                "podUid": "u", "pod": "web-1", "containerId": "c", "interface": "eth0", "node": "n1",
                "since": "2026-11-24T02:01:28.5Z",
            })
        });
        let owner = json!({"namespace": namespace, "group": "apps", "kind": "Deployment", "name": "web"});
        serde_json::from_value(json!({
            "address": "10.244.0.216", "owner": owner, "holder": holder, "created": "2026-11-24T02:01:28Z",
            "generation": 1,
        }))
        .unwrap()
    }

    #[test]
    fn a_claim_shows_its_holder_or_that_there_is_none() {
        let expected = "\
ADDRESS        OWNER                    HOLDER   NODE   SINCE
10.244.0.216   Deployment default/web   web-1    n1     2026-11-24T02:01:28Z
10.244.0.216   Deployment prod/web      -        -      -";
        assert_eq!(table(&[claim("default", true), claim("prod", false)]), expected);
    }

    #[test]
    fn an_address_that_is_handed_over_says_to_whom() {
        let successor = |until: &str| json!({"podUid": "v", "pod": "web-2", "until": until});
        let with = |holder: bool, until: &str| {
            let mut value = serde_json::to_value(claim("default", holder)).unwrap();
            value["successor"] = successor(until);
            serde_json::from_value::<Claim>(value).unwrap()
        };
        let shown = table(&[with(true, "2999-01-01T00:00:00Z"), with(false, "2999-01-01T00:00:00Z")]);
        assert!(shown.contains("web-1, handing over to web-2   n1"), "{shown}");
        assert!(shown.lines().last().unwrap().contains("handing over to web-2"), "{shown}");
        assert!(!table(&[with(true, "2020-01-01T00:00:00Z")]).contains("handing over"));
    }

    #[test]
    fn only_the_namespace_that_is_asked_for_is_listed() {
        let only = Claims { namespace: Some("prod".into()), ..Claims::default() };
        assert!(only.wants(&claim("prod", false)) && !only.wants(&claim("default", false)));
        assert!(Claims::default().wants(&claim("default", false)));
    }
}
