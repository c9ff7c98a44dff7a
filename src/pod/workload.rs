//! What a workload's object says of the pods that it makes.

use std::net::IpAddr;

use serde_json::Value;

use super::{FixedRequest, IP};

/// The object of a pod's owner, of any kind.
pub struct Workload<'a> {
    object: &'a Value,
}

impl<'a> Workload<'a> {
    /// A Deployment, CronJob, Pod or whichever kind; it need not have a pod template.
    pub fn of(object: &'a Value) -> Self {
        Self { object }
    }

    /// Whether its pods ask for an address by `kube-ipam.ip`; `None` if it has no pod template, or the annotation cannot
    /// be read.
    pub fn asks_for(&self, address: IpAddr) -> Option<bool> {
        let template = ["/spec/template", "/spec/jobTemplate/spec/template"];
        let template = template.iter().find_map(|path| self.object.pointer(path))?;
        let Some(asked) = template.pointer("/metadata/annotations").and_then(|annotations| annotations.get(IP)) else {
            return Some(false);
        };
        let listed = FixedRequest::listed(asked.as_str()?);
        (!listed.is_empty()).then(|| listed.contains(&address))
    }

    /// The labels by which its pods are listed, as `a=b,c=d`; `None` if its selector cannot be written so.
    pub fn selector(&self) -> Option<String> {
        let selector = self.object.pointer("/spec/selector")?.as_object()?;
        let labels = match selector.get("matchLabels") {
            Some(labels) if !selector.contains_key("matchExpressions") => labels.as_object()?,
            None if selector.values().all(Value::is_string) => selector,
            _ => return None,
        };
        let pairs: Option<Vec<String>> =
            labels.iter().map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
        pairs.filter(|pairs| !pairs.is_empty()).map(|pairs| pairs.join(","))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_says_which_addresses_its_pods_ask_for() {
        let address = "10.0.0.7".parse().unwrap();
        let asks = |object: Value| Workload::of(&object).asks_for(address);
        let template = |asked: &str| json!({"metadata": {"annotations": {IP: asked}}});
        assert_eq!(asks(json!({"spec": {"template": template("10.0.0.5-10.0.0.9")}})), Some(true));
        assert_eq!(asks(json!({"spec": {"template": template("10.0.0.8")}})), Some(false));
        assert_eq!(asks(json!({"spec": {"template": {}}})), Some(false));
        let cron = json!({"spec": {"jobTemplate": {"spec": {"template": template("10.0.0.7")}}}});
        assert_eq!(asks(cron), Some(true));
        assert_eq!(asks(json!({"spec": {}})), None, "of a kind without a template nothing is known");
        assert_eq!(asks(json!({"spec": {"template": template("10.0.0")}})), None);
    }

    #[test]
    fn pods_are_listed_by_the_labels_of_the_selector_or_not_at_all() {
        let selector = |selector: Value| Workload::of(&json!({"spec": {"selector": selector}})).selector();
        assert_eq!(selector(json!({"matchLabels": {"a": "b", "c": "d"}})).as_deref(), Some("a=b,c=d"));
        assert_eq!(selector(json!({"a": "b"})).as_deref(), Some("a=b"), "a ReplicationController's");
        for other in [json!({"matchLabels": {"a": "b"}, "matchExpressions": []}), json!({}), json!(null)] {
            assert_eq!(selector(other), None);
        }
    }
}
