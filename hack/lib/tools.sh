# shellcheck shell=bash
# Builds the programs of a Kubernetes cluster, and those that the chart is tested with, from source, through the Go module
# proxy, at the versions that hack/modules/*/go.mod pin. Sourced by hack/cluster and hack/chart, after common.sh.

# module, program, package; "health" is a small program of our own around what it asks
TOOLS='
etcd       etcd                    go.etcd.io/etcd/server/v3
kubernetes kube-apiserver          k8s.io/kubernetes/cmd/kube-apiserver
kubernetes kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager
kubernetes kube-scheduler          k8s.io/kubernetes/cmd/kube-scheduler
kubernetes kubelet                 k8s.io/kubernetes/cmd/kubelet
kubernetes kube-proxy              k8s.io/kubernetes/cmd/kube-proxy
kubernetes kubectl                 k8s.io/kubernetes/cmd/kubectl
containerd containerd              github.com/containerd/containerd/v2/cmd/containerd
containerd containerd-shim-runc-v2 github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
containerd ctr                     github.com/containerd/containerd/v2/cmd/ctr
coredns    coredns                 github.com/coredns/coredns
helm       helm                    helm.sh/helm/v4/cmd/helm
kubeconform kubeconform            github.com/yannh/kubeconform/cmd/kubeconform
health     health                  patchwarden.io/hack/health
'

# What a cluster is made of.
CLUSTER_MODULES=(etcd kubernetes containerd coredns)

# The version that a module's go.mod pins for what it is named after.
module_version() {
  local package
  package=$(awk -v m="$1" '$1 == m { print $3; exit }' <<<"$TOOLS")
  [[ $1 != health ]] || package=sigs.k8s.io/cli-utils
  awk -v p="${package%%/cmd/*}" '/^replace/ { exit } { for (i = 1; i < NF; i++) if ($i == p && $(i+1) ~ /^v/) { print $(i+1); exit } }' \
    "$HACK/modules/$1/go.mod"
}

# Where a module's programs lie once built. Another go.mod, or another source of our own beside it, is another directory.
module_dir() {
  local hash
  hash=$(find "$HACK/modules/$1" -name go.mod -o -name '*.go' | sort | xargs cat | sha256sum)
  printf '%s/tools/%s-%s-%s' "$PATCHWARDEN_CACHE" "$1" "$(module_version "$1")" "${hash:0:8}"
}

tool() { printf '%s/%s' "$(module_dir "$1")" "$2"; }

# The one that was built; where nothing was, because an existing cluster is used, the host's.
kubectl_program() {
  if [[ -x $(tool kubernetes kubectl) ]]; then tool kubernetes kubectl; else command -v kubectl; fi ||
    die "no kubectl: neither built (hack/cluster build) nor on the PATH"
}

# module_source MODULE PACKAGE: where the source of a package lies that a module's go.mod pins.
module_source() {
  command -v go >/dev/null || die "go is not on the PATH; the version needed is in hack/modules/kubernetes/go.mod"
  (cd "$HACK/modules/$1" && GOWORK=off GOFLAGS='' go mod download -json "$2" | jq -er .Dir)
}

# The linker flags that write a module's version into its programs.
module_ldflags() {
  local version flags='-s -w' package
  version=$(module_version "$1")
  case $1 in
    kubernetes)
      for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$version -X $package.gitTreeState=clean"
        flags+=" -X $package.gitMajor=$(cut -d. -f1 <<<"${version#v}") -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
      done
      ;;
    containerd) flags+=" -X github.com/containerd/containerd/v2/version.Version=$version" ;;
    helm) flags+=" -X helm.sh/helm/v4/internal/version.version=$version" ;;
    kubeconform) flags+=" -X main.version=$version" ;;
  esac
  printf '%s' "$flags"
}

# tools_are_built MODULE...
tools_are_built() {
  local module
  for module in "$@"; do [[ -d $(module_dir "$module") ]] || return 1; done
}

# build_tools MODULE...: builds what is missing of them. A module's directory appears only when all its programs are in it.
build_tools() {
  ! tools_are_built "$@" || return 0
  command -v go >/dev/null || die "go is not on the PATH; the version needed is in hack/modules/kubernetes/go.mod"
  mkdir -p "$PATCHWARDEN_CACHE/tools"
  (
    flock -n 9 || { say "waiting for another build in $PATCHWARDEN_CACHE"; flock 9; }
    build_missing_modules "$@"
  ) 9>"$PATCHWARDEN_CACHE/tools/.lock"
}

build_missing_modules() {
  local module program package total count=0 done=' ' partial began=$EPOCHREALTIME start
  total=$(awk -v wanted=" $* " 'NF && index(wanted, " " $1 " ")' <<<"$TOOLS" | wc -l)
  while read -r module program package; do
    [[ -n $module && " $* " == *" $module "* ]] || continue
    count=$((count + 1))
    [[ -d $(module_dir "$module") ]] && continue
    partial="$PATCHWARDEN_CACHE/tools/.partial-$module"
    [[ $done == *" $module "* ]] || rm -rf "$partial"
    done+="$module "
    start=$EPOCHREALTIME
    printf 'building %d of %d: %s %s ...' "$count" "$total" "$program" "$(module_version "$module")"
    # -mod=mod is never used: what is built is what go.sum says.
    (cd "$HACK/modules/$module" && GOWORK=off GOFLAGS='' CGO_ENABLED=0 \
      go build -trimpath -buildvcs=false -ldflags "$(module_ldflags "$module")" -o "$partial/$program" "$package") </dev/null
    say " $(elapsed "$start")"
    # The last program of a module completes it.
    if [[ $program == "$(awk -v m="$module" '$1 == m { p = $2 } END { print p }' <<<"$TOOLS")" ]]; then
      mv "$partial" "$(module_dir "$module")"
    fi
  done <<<"$TOOLS"
  say "built $* in $PATCHWARDEN_CACHE/tools ($(elapsed "$began"))"
}
