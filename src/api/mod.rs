//! The resources of `patchwarden.io/v1alpha1`: one file a kind, types and admission rules only, no logic.
//!
//! Every list and string has a maximum, so that the API server can bound the cost of the CEL rules (KEP-2876) and an
//! object cannot grow without limit. Lists that one writer owns are atomic; lists that people edit merge by their key.

pub mod applications;
pub mod approval_group;
pub mod conditions;
pub mod crd;
pub mod device_inventory;
pub mod maintenance_window;
pub mod patch_policy;
pub mod safeguards;
pub mod selector;
pub mod site_cache;

pub use approval_group::{ApprovalGroup, ApprovalGroupSpec, ApprovalGroupStatus};
pub use device_inventory::{DeviceInventory, DeviceInventorySpec, DeviceInventoryStatus};
pub use maintenance_window::{MaintenanceWindow, MaintenanceWindowSpec, MaintenanceWindowStatus};
pub use patch_policy::{PatchPolicy, PatchPolicySpec, PatchPolicyStatus};
pub use selector::Selector;

/// The API group.
pub const GROUP: &str = "patchwarden.io";

/// Label of an install Job: its value is the device's name.
pub const LABEL_DEVICE: &str = "patchwarden.io/device";

/// Annotation of an install Job: the policy in whose name it runs.
pub const ANNOTATION_POLICY: &str = "patchwarden.io/policy";

/// Label of an install Job that the admission policies select by; its value is always `true`.
pub const LABEL_INSTALL: &str = "patchwarden.io/install";

/// Annotation of an install Job: JSON of the signed order.
pub const ANNOTATION_ORDER: &str = "patchwarden.io/order";

/// Annotation of an install Job: `<holderIdentity>/<leaseTransitions>` of the leader that created it, which the
/// admission policy compares with the Lease, so that a leader that lost it creates nothing more.
pub const ANNOTATION_LEADER: &str = "patchwarden.io/leader";

/// Finalizer of an install Job until its result is in the device's status.
pub const FINALIZER_RESULT: &str = "patchwarden.io/result";

/// Signer of the agents' client certificates (certificates.k8s.io/v1 signerName).
pub const SIGNER_AGENT: &str = "patchwarden.io/agent";

/// Signer of the gateways' serving certificates.
pub const SIGNER_GATEWAY: &str = "patchwarden.io/gateway";

/// Annotation of an agent's CertificateSigningRequest: `<namespace>/<name>` of its DeviceInventory.
pub const ANNOTATION_DEVICE: &str = "patchwarden.io/device";

/// ConfigMap in Patchwarden's namespace with what agents pin: `ca.pem` and `root.pub` (base64 of 32 bytes).
pub const TRUST_CONFIG_MAP: &str = "patchwarden-trust";

/// Label of the ConfigMaps that describe join tokens; its value is always `true`.
pub const LABEL_JOIN_TOKEN: &str = "patchwarden.io/join-token";

/// Field manager of the controller's writes.
pub const MANAGER_CONTROLLER: &str = "patchwarden-controller";

/// Field manager of the gateway's writes.
pub const MANAGER_GATEWAY: &str = "patchwarden-gateway";
