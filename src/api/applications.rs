//! Applications that a policy wants on its devices, or does not want there.

use kube::KubeSchema;
use patchwarden_protocol::applications::Ensure;
use serde::{Deserialize, Serialize};

/// What a policy says of one third-party application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Application {
    /// The name of its recipe, as its publisher calls it: `kubectl`.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9][a-z0-9._-]*$')")
        .message("must be the name of a recipe: lower-case letters, digits and any of `-_.`, a letter or digit first"))]
    pub name: String,
    /// `Installed`: where it is missing, the version that its recipe names is installed. `Absent`: where it is there, it is
    /// removed. Either needs its approval, as an update of the kind `FirstInstall` or `Removal`.
    pub ensure: Ensure,
}
