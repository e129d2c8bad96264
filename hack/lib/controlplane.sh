# shellcheck shell=bash
# The daemons of a cluster, one function each, and the configuration that each of them reads. Sourced by hack/cluster,
# after the other libraries; everything runs in the node's box (node.sh), so the well-known ports are free and loopback
# is private. Variables from `hack/cluster`: STATE, NAME; from the cluster's env: NODE_ADDRESS, APISERVER.

start_etcd() {
  local pki=$STATE/pki
  # Nothing here must survive a power cut, so nothing waits for the disk.
  start "$STATE" etcd "$(tool etcd etcd)" --name="$NAME" --data-dir="$STATE/etcd" --unsafe-no-fsync \
    --listen-client-urls=https://127.0.0.1:2379 --advertise-client-urls=https://127.0.0.1:2379 \
    --listen-peer-urls=https://127.0.0.1:2380 --initial-advertise-peer-urls=https://127.0.0.1:2380 \
    --initial-cluster="$NAME=https://127.0.0.1:2380" --listen-metrics-urls=http://127.0.0.1:2381 \
    --client-cert-auth --trusted-ca-file="$pki/etcd-ca.crt" --cert-file="$pki/etcd.crt" --key-file="$pki/etcd.key" \
    --peer-client-cert-auth --peer-trusted-ca-file="$pki/etcd-ca.crt" --peer-cert-file="$pki/etcd.crt" \
    --peer-key-file="$pki/etcd.key" --quota-backend-bytes=8589934592
}

etcd_is_ready() {
  # shellcheck disable=SC2016
  in_network "$NAME" bash -c 'exec 3<>/dev/tcp/127.0.0.1/2381 && printf "GET /readyz HTTP/1.0\r\n\r\n" >&3 && grep -q "200 OK" <&3'
}

start_apiserver() {
  local pki=$STATE/pki
  # The audit log counts writes: it stays one file (10 GB), and no entry may be dropped.
  start "$STATE" kube-apiserver "$(tool kubernetes kube-apiserver)" \
    --advertise-address="$NODE_ADDRESS" --secure-port=6443 --service-cluster-ip-range="$SERVICES" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --etcd-servers=https://127.0.0.1:2379 --etcd-cafile="$pki/etcd-ca.crt" \
    --etcd-certfile="$pki/apiserver-etcd-client.crt" --etcd-keyfile="$pki/apiserver-etcd-client.key" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$pki/service-account.pub" --service-account-signing-key-file="$pki/service-account.key" \
    --kubelet-preferred-address-types=InternalIP,Hostname --kubelet-certificate-authority="$pki/ca.crt" \
    --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" \
    --kubelet-client-key="$pki/apiserver-kubelet-client.key" \
    --proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key" \
    --requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --audit-policy-file="$HACK/lib/audit-policy.yaml" --audit-log-path="$STATE/audit.log" --audit-log-maxsize=10000 \
    --audit-log-mode=blocking
}

apiserver_is_ready() { as_admin get --raw /readyz; }

start_controller_manager() {
  local pki=$STATE/pki config=$STATE/pki/controller-manager.kubeconfig
  # The signing key serves the default signers (CertificateSigningRequests). Queries per second: the default. A node that
  # has become ready is noticed after 1 s instead of 5 s: until then no pod is scheduled.
  start "$STATE" kube-controller-manager "$(tool kubernetes kube-controller-manager)" --leader-elect=false \
    --node-monitor-period=1s \
    --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" \
    --client-ca-file="$pki/ca.crt" --requestheader-client-ca-file="$pki/front-proxy-ca.crt" \
    --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/service-account.key" \
    --use-service-account-credentials --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key"
}

start_scheduler() {
  local config=$STATE/pki/scheduler.kubeconfig
  start "$STATE" kube-scheduler "$(tool kubernetes kube-scheduler)" --leader-elect=false \
    --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config"
}

start_containerd() {
  local snapshotter=overlayfs
  # An overlay's changes cannot lie on another overlay.
  [[ $(stat -fc %T "$STATE") != overlayfs ]] || snapshotter=native
  mkdir -p "$STATE/cni"
  cat >"$STATE/containerd.toml" <<EOF
version = 3
root = "$STATE/containerd"
state = "/run/containerd"
# None of these is used, and they would make directories in /opt and /etc.
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[plugins.'io.containerd.cri.v1.images']
snapshotter = "$snapshotter"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "$PAUSE_IMAGE"
[plugins.'io.containerd.cri.v1.runtime']
# Without CAP_SYS_RESOURCE a sandbox that asks for a lower OOM score fails to start.
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "$STATE/cni"
EOF
  # ptp routes each pod by itself: unlike on a bridge, Service addresses work between pods without br_netfilter.
  cat >"$STATE/cni/10-pods.conflist" <<EOF
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "ptp", "mtu": $(host_mtu),
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$PODS"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
EOF
  start "$STATE" containerd env PATH="$(module_dir containerd):$PATH" "$(tool containerd containerd)" \
    --config "$STATE/containerd.toml"
}

containerd_is_ready() { in_node "$STATE" "$(tool containerd ctr)" version; }

start_kubelet() {
  local pki=$STATE/pki
  upstream_resolv_conf >"$STATE/resolv.conf"
  # A development machine's disk is often nearly full: that must not evict anything.
  cat >"$STATE/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  x509: {clientCAFile: $pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $pki/kubelet-server.crt
tlsPrivateKeyFile: $pki/kubelet-server.key
clusterDomain: cluster.local
clusterDNS: [$DNS_SERVICE_ADDRESS]
resolvConf: $STATE/resolv.conf
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
podLogsDir: $STATE/logs/pods
cgroupDriver: cgroupfs
cgroupRoot: /pw-$NAME
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
maxPods: 250
serializeImagePulls: false
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
EOF
  start "$STATE" kubelet "$(tool kubernetes kubelet)" --config="$STATE/kubelet.yaml" --root-dir="$STATE/kubelet" \
    --kubeconfig="$pki/kubelet.kubeconfig" --hostname-override="$NAME" --node-ip="$NODE_ADDRESS"
}

node_is_ready() { as_admin wait --for=condition=Ready "node/$NAME" --timeout=1s; }

start_proxy() {
  # Zeroes: the connection table is the whole machine's, its size is not ours to set.
  cat >"$STATE/kube-proxy.yaml" <<EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: $STATE/pki/proxy.kubeconfig}
hostnameOverride: $NAME
clusterCIDR: $PODS
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {minSyncPeriod: 0s}
EOF
  start "$STATE" kube-proxy "$(tool kubernetes kube-proxy)" --config="$STATE/kube-proxy.yaml"
}

apply_addons() {
  sed -e "s|@DNS_SERVICE_ADDRESS@|$DNS_SERVICE_ADDRESS|" -e "s|@COREDNS_IMAGE@|$COREDNS_IMAGE|" "$HACK/lib/addons.yaml" |
    as_admin apply --server-side -f - >/dev/null
}

dns_is_ready() { as_admin -n kube-system wait --for=condition=Available deployment/coredns --timeout=1s; }

as_admin() { "$(kubectl_program)" --kubeconfig="$STATE/admin.kubeconfig" "$@"; }
