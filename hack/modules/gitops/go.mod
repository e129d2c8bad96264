// Pins the Argo CD and the Flux whose kinds the YAML of docs/gitops.md is checked against; nothing of them is built, or linked into
// Patchwarden.
module patchwarden.io/hack/gitops

go 1.26.0

require (
	github.com/argoproj/argo-cd/v3 v3.5.7
	github.com/fluxcd/kustomize-controller v1.9.6
	github.com/fluxcd/source-controller v1.9.6
)
