//! A client's namespace as it is now, for commands that ask the planner about it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use kube::api::ListParams;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::api::approval_group::DecisionAction;
use crate::api::device_inventory::Compliance;
use crate::api::{ApprovalGroup, DeviceInventory, MaintenanceWindow, PatchPolicy};
use crate::convert;
use crate::plan::Snapshot;
use crate::plan::model::Group;
use crate::plan::outcome::{DecidedBy, Decision, UpdatePlan};
use crate::vulnerabilities::{self, Vulnerabilities};

/// How many objects are asked for at a time.
const PAGE: u32 = 500;

/// Whose devices, and where the organisation's groups are.
#[derive(Clone, Debug, Args)]
pub struct Where {
    /// Namespace of the client. Default: that of the kubeconfig's context.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Patchwarden's own namespace, where the organisation's groups are.
    #[arg(long, default_value = "patchwarden-system")]
    patchwarden_namespace: String,
    /// Directory of vulnerability data, as the controller has it: without it rules that ask for KEV or EPSS wait, and what apt's
    /// updates fix is not known.
    #[arg(long, env = "PATCHWARDEN_VULNERABILITIES", value_name = "DIRECTORY")]
    vulnerabilities: Option<PathBuf>,
}

impl Where {
    /// With the namespace of the kubeconfig's context where none is named.
    pub fn resolve(self, client: &Client) -> Place {
        let Self { namespace, patchwarden_namespace, vulnerabilities } = self;
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        Place { namespace, patchwarden_namespace, vulnerabilities }
    }
}

/// The same, decided.
#[derive(Clone, Debug)]
pub struct Place {
    /// Namespace of the client.
    pub namespace: String,
    /// Patchwarden's own namespace.
    pub patchwarden_namespace: String,
    /// Directory of vulnerability data.
    pub vulnerabilities: Option<PathBuf>,
}

/// What the namespace holds, by name.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Policies.
    pub policies: BTreeMap<String, PatchPolicy>,
    /// Groups.
    pub groups: BTreeMap<String, ApprovalGroup>,
    /// The organisation's groups.
    pub organisation: BTreeMap<String, ApprovalGroup>,
    /// Windows.
    pub windows: BTreeMap<String, MaintenanceWindow>,
    /// Devices.
    pub devices: BTreeMap<String, DeviceInventory>,
    /// What is known of vulnerabilities.
    pub vulnerabilities: Vulnerabilities,
}

impl Live {
    /// All of it, from the API server and the directory of vulnerability data.
    pub async fn load(client: &Client, place: &Place) -> anyhow::Result<Self> {
        let vulnerabilities = place.vulnerabilities.as_deref().map(vulnerabilities::read).transpose();
        let vulnerabilities = vulnerabilities.context("--vulnerabilities")?.unwrap_or_default();
        Ok(Self {
            policies: list(client, &place.namespace).await?,
            groups: list(client, &place.namespace).await?,
            organisation: list(client, &place.patchwarden_namespace).await?,
            windows: list(client, &place.namespace).await?,
            devices: list(client, &place.namespace).await?,
            vulnerabilities,
        })
    }

    /// As the planner sees it.
    pub fn snapshot(&self, place: &Place, now: Timestamp) -> Snapshot {
        let own = place.patchwarden_namespace.as_str();
        let groups = self.groups.values().map(|group| convert::group(group, own));
        let shared = self.organisation.values().map(|group| convert::shared_group(&convert::group(group, own), own));
        let groups: Vec<Group> = groups.chain(shared).collect();
        let none = Compliance::default();
        let devices = self.devices.values().map(|device| {
            let compliance = device.status.as_ref().and_then(|status| status.compliance.as_ref());
            (device, compliance.unwrap_or(&none))
        });
        convert::snapshot(self.policies.values(), groups, self.windows.values(), devices, &self.vulnerabilities, now)
    }

    /// Why it was decided so, where a decision says of an update what is `planned`, and somebody has written that down.
    pub fn reason(&self, planned: &UpdatePlan) -> Option<&str> {
        let DecidedBy::Decision { group, update } = planned.decided_by.as_deref()? else { return None };
        let group = match group.split_once('/') {
            Some((_, name)) => self.organisation.get(name),
            None => self.groups.get(&**group),
        };
        let action = match planned.decision {
            Decision::Approved | Decision::Aging => DecisionAction::Approve,
            Decision::Ignored | Decision::Waived => DecisionAction::Ignore,
            Decision::AwaitingApproval => DecisionAction::DoNothing,
            Decision::Remove => DecisionAction::Uninstall,
        };
        // A group has one decision of an action on what is named in the same way.
        let mut decisions = group?.spec.decisions.iter();
        decisions.find(|it| it.update == **update && it.action == action)?.reason.as_deref()
    }
}

async fn list<K>(client: &Client, namespace: &str) -> anyhow::Result<BTreeMap<String, K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let all = all::<K>(client, Some(namespace)).await?;
    Ok(all.into_iter().map(|object| (object.name_any(), object)).collect())
}

/// All objects of a kind, of one namespace or of all. Page by page: a client may have many thousand devices.
pub async fn all<K>(client: &Client, namespace: Option<&str>) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let place = || namespace.map_or_else(|| "all namespaces".to_owned(), |namespace| format!("namespace {namespace}"));
    let mut objects = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await.with_context(|| format!("cannot list {} in {}", K::plural(&()), place()))?;
        let next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        objects.extend(page.items);
        match next {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(objects),
        }
    }
}
