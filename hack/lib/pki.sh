# shellcheck shell=bash
# A cluster's certificates and kubeconfigs, made by openssl. Sourced by hack/cluster, after common.sh.
#
#   ca             what clients of the API server trust, and what signs every Kubernetes identity
#   front-proxy-ca what aggregated API servers trust
#   etcd-ca        what etcd and its only client trust

# openssl's own configuration would make every certificate a CA's.
OPENSSL_CONF_TEXT=$'[req]\ndistinguished_name=dn\n[dn]\n'
# A cluster lives for an afternoon; a year forgives those who forget one.
PKI_DAYS=365

# certificate DIR NAME SUBJECT EXTRA_ARGUMENTS...
certificate() {
  local dir=$1 name=$2 subject=$3
  shift 3
  openssl req -x509 -config <(printf '%s' "$OPENSSL_CONF_TEXT") -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc \
    -days "$PKI_DAYS" -subj "$subject" -keyout "$dir/$name.key" -out "$dir/$name.crt" "$@" 2>>"$dir/openssl.log"
}

authority() {
  certificate "$1" "$2" "/CN=patchwarden-dev-$2" -addext basicConstraints=critical,CA:TRUE \
    -addext keyUsage=critical,digitalSignature,keyCertSign,cRLSign
}

# issue DIR CA NAME SUBJECT USAGES [ALTERNATIVE_NAMES]
issue() {
  local names=()
  [[ -z ${6:-} ]] || names=(-addext "subjectAltName=$6")
  certificate "$1" "$3" "$4" -CA "$1/$2.crt" -CAkey "$1/$2.key" -addext basicConstraints=critical,CA:FALSE \
    -addext keyUsage=critical,digitalSignature -addext "extendedKeyUsage=$5" "${names[@]}"
}

# kubeconfig FILE SERVER CA_FILE, and the user's credentials as lines of YAML on stdin.
kubeconfig() {
  local file=$1
  (
    umask 077
    cat >"$file" <<EOF
apiVersion: v1
kind: Config
current-context: default
clusters:
- name: default
  cluster:
    server: $2
    certificate-authority-data: $(base64 -w0 "$3")
contexts:
- name: default
  context: {cluster: default, user: default}
users:
- name: default
  user:
$(sed 's/^/    /')
EOF
  )
}

# client DIR NAME SUBJECT SERVER: a client certificate of the cluster's CA, and the kubeconfig that holds it.
client() {
  issue "$1" ca "$2" "$3" clientAuth
  kubeconfig "$1/$2.kubeconfig" "$4" "$1/ca.crt" <<EOF
client-certificate-data: $(base64 -w0 "$1/$2.crt")
client-key-data: $(base64 -w0 "$1/$2.key")
EOF
}

# make_pki DIR NODE NODE_ADDRESS SERVICE_ADDRESS SERVER
make_pki() {
  local dir=$1 node=$2 node_address=$3 service_address=$4 server=$5
  (umask 077 && mkdir -p "$dir")
  authority "$dir" ca
  authority "$dir" front-proxy-ca
  authority "$dir" etcd-ca

  local dns=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
  dns+=,DNS:kubernetes.default.svc.cluster.local,DNS:localhost
  issue "$dir" ca apiserver /CN=kube-apiserver serverAuth "$dns,IP:$service_address,IP:$node_address,IP:127.0.0.1"
  issue "$dir" ca apiserver-kubelet-client /CN=kube-apiserver-kubelet-client clientAuth
  issue "$dir" front-proxy-ca front-proxy-client /CN=front-proxy-client clientAuth
  issue "$dir" etcd-ca etcd /CN=etcd serverAuth,clientAuth DNS:localhost,IP:127.0.0.1
  issue "$dir" etcd-ca apiserver-etcd-client /CN=kube-apiserver-etcd-client clientAuth
  issue "$dir" ca kubelet-server "/O=system:nodes/CN=system:node:$node" serverAuth "DNS:$node,IP:$node_address"

  client "$dir" admin /O=system:masters/CN=kubernetes-admin "$server"
  client "$dir" controller-manager /CN=system:kube-controller-manager "$server"
  client "$dir" scheduler /CN=system:kube-scheduler "$server"
  client "$dir" proxy /CN=system:kube-proxy "$server"
  client "$dir" kubelet "/O=system:nodes/CN=system:node:$node" "$server"

  openssl ecparam -name prime256v1 -genkey -noout -out "$dir/service-account.key"
  openssl ec -in "$dir/service-account.key" -pubout -out "$dir/service-account.pub" 2>>"$dir/openssl.log"
}
