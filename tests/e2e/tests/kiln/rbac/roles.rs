//! The roles that the chart gives the operator: what they allow, and how one right is taken away for a while.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kiln_e2e::cluster::{builders_namespace, operator_namespace};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use self::Place::{ApiServer, Builders, Everywhere, Own};

/// Where a right holds, and so which role gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    /// The `ClusterRole`.
    Everywhere,
    /// The Role in the operator's namespace.
    Own,
    /// The Role in the builders' namespace.
    Builders,
    /// The Role in the namespace of the API server's Service.
    ApiServer,
}

/// Where, on what (with its subresource), and which verb.
pub type Right = (Place, &'static str, &'static str);

/// The four roles, as the chart made them.
pub struct Roles {
    client: Client,
    name: String,
    account: String,
    /// The rules of each.
    pub rules: Vec<(Place, Vec<PolicyRule>)>,
}

impl Roles {
    /// Reads them from the cluster.
    pub async fn read(client: &Client) -> Self {
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), &operator_namespace());
        let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
        let deployment = deployments.list(&operators).await.unwrap().items.pop().expect("Kiln is installed");
        let account = deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap().service_account_name.clone();
        let mut roles = Self {
            client: client.clone(),
            name: deployment.name_any(),
            account: format!("system:serviceaccount:{}:{}", operator_namespace(), account.unwrap()),
            rules: Vec::new(),
        };
        let everywhere = Api::<ClusterRole>::all(client.clone()).get(&roles.name).await.unwrap().rules;
        let own = roles.role(Own).get(&roles.name_of(Own)).await.unwrap().rules;
        let builders = roles.role(Builders).get(&roles.name_of(Builders)).await.unwrap().rules;
        let api_server = roles.role(ApiServer).get(&roles.name_of(ApiServer)).await.unwrap().rules;
        roles.rules = [(Everywhere, everywhere), (Own, own), (Builders, builders), (ApiServer, api_server)]
            .map(|(place, rules)| (place, rules.unwrap()))
            .into();
        roles
    }

    fn role(&self, place: Place) -> Api<Role> {
        let namespace = match place {
            Own => operator_namespace(),
            ApiServer => "default".to_owned(),
            Builders | Everywhere => builders_namespace(),
        };
        Api::namespaced(self.client.clone(), &namespace)
    }

    fn name_of(&self, place: Place) -> String {
        match place {
            Builders => format!("{}-builders", self.name),
            ApiServer => format!("{}-api-server", self.name),
            Own | Everywhere => self.name.clone(),
        }
    }

    /// Every right that they give.
    pub fn rights(&self) -> Vec<(Place, String, String)> {
        let mut rights = Vec::new();
        for (place, rules) in &self.rules {
            for rule in rules {
                for resource in rule.resources.iter().flatten() {
                    rights.extend(rule.verbs.iter().map(|verb| (*place, resource.clone(), verb.clone())));
                }
            }
        }
        rights
    }

    /// Takes these rights away, and waits until the API server acts by that.
    pub async fn take(&self, rights: &[Right]) {
        for (place, rules) in &self.rules {
            let taken: Vec<_> = rights.iter().filter(|right| right.0 == *place).collect();
            if taken.is_empty() {
                continue;
            }
            let mut kept = Vec::new();
            for rule in rules {
                for resource in rule.resources.iter().flatten() {
                    let mut rule = PolicyRule { resources: Some(vec![resource.clone()]), ..rule.clone() };
                    rule.verbs.retain(|verb| !taken.iter().any(|right| right.1 == *resource && right.2 == *verb));
                    if !rule.verbs.is_empty() {
                        kept.push(rule);
                    }
                }
            }
            self.write(*place, &kept).await;
        }
        for right in rights {
            self.until(*right, false).await;
        }
    }

    /// Gives them back.
    pub async fn restore(&self, rights: &[Right]) {
        for (place, rules) in &self.rules {
            self.write(*place, rules).await;
        }
        for right in rights {
            self.until(*right, true).await;
        }
    }

    async fn write(&self, place: Place, rules: &[PolicyRule]) {
        let patch = Patch::Merge(json!({"rules": rules}));
        let parameters = PatchParams::default();
        if place == Everywhere {
            let everywhere = Api::<ClusterRole>::all(self.client.clone());
            everywhere.patch(&self.name, &parameters, &patch).await.expect("a ClusterRole can be changed");
        } else {
            let name = self.name_of(place);
            self.role(place).patch(&name, &parameters, &patch).await.expect("a Role can be changed");
        }
    }

    /// Waits until the API server's own copy of the roles says so.
    async fn until(&self, (place, resource, verb): Right, allowed: bool) {
        let (resource, subresource) =
            resource.split_once('/').map_or((resource, None), |(name, sub)| (name, Some(sub)));
        let group = self.rules.iter().flat_map(|(_, rules)| rules).find_map(|rule| {
            let names = rule.resources.iter().flatten().any(|name| name.split('/').next() == Some(resource));
            names.then(|| rule.api_groups.clone().unwrap_or_default().concat())
        });
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(self.account.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group,
                    namespace: match place {
                        Everywhere => None,
                        Own => Some(operator_namespace()),
                        Builders => Some(builders_namespace()),
                        ApiServer => Some("default".to_owned()),
                    },
                    // The objects that a rule names.
                    name: match (place, resource, verb) {
                        (Own, _, "create") => None,
                        (Own, "leases", _) => Some("kiln-operator".to_owned()),
                        (Own, "secrets", _) => Some("kiln-ca".to_owned()),
                        (Builders, "networkpolicies", "create" | "patch") => Some(super::POLICY.to_owned()),
                        (ApiServer, ..) => Some("kubernetes".to_owned()),
                        (_, "serviceaccounts", _) => Some("default".to_owned()),
                        _ => None,
                    },
                    resource: Some(resource.to_owned()),
                    subresource: subresource.map(str::to_owned),
                    verb: Some(verb.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        for _ in 0..100 {
            let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
            if answer.status.unwrap().allowed == allowed {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!(
            "{place:?}: {verb} {resource} is {} although this role says otherwise: another one gives the same right",
            if allowed { "refused" } else { "allowed" }
        );
    }
}
