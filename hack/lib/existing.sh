# shellcheck shell=bash
# A network for an existing cluster: what stands in for a node is an empty box, and two relays of the host join the network
# and the cluster. Sourced by hack/cluster, after the other libraries. Variables from `hack/cluster`: STATE, NAME,
# KUBECONFIG_FILE, RUNNERS_ADDRESS; from the env: HOST_ADDRESS, NODE_ADDRESS.

# On the host's side of the network. Not the API server's own: that one may listen on every address of this host.
API_RELAY_PORT=16443
RUNNERS_PORT=8444

# Before anything is changed. A kubeconfig of the environment is never looked at.
check_existing() {
  [[ -r $KUBECONFIG_FILE ]] || die "$KUBECONFIG_FILE: no such kubeconfig"
  is_host_address "$RUNNERS_ADDRESS" || die "\"$RUNNERS_ADDRESS\" is not an IPv4 address of this machine"
  GIVEN_KUBECONFIG=$("$(kubectl_program)" --kubeconfig="$KUBECONFIG_FILE" config view --raw --minify --flatten -o json) ||
    die "$KUBECONFIG_FILE has no current context that can be used"
  [[ -z $(given '.clusters[0].cluster["proxy-url"] // ""') ]] || die "$KUBECONFIG_FILE: proxy-url is not supported here"
  local server
  server=$(given .clusters[0].cluster.server)
  [[ $server =~ ^(https?)://(\[[0-9a-fA-F:]+\]|[^][/:@]+)(:([0-9]+))?(/.*)?$ ]] ||
    die "$KUBECONFIG_FILE: the server \"$server\" is not understood"
  SERVER_SCHEME=${BASH_REMATCH[1]} SERVER_HOST=${BASH_REMATCH[2]} SERVER_PORT=${BASH_REMATCH[4]} SERVER_PATH=${BASH_REMATCH[5]}
  case $SERVER_SCHEME in
    https) SERVER_PORT=${SERVER_PORT:-443} ;;
    http) SERVER_PORT=${SERVER_PORT:-80} ;;
  esac
}

given() { jq -er "$1" <<<"$GIVEN_KUBECONFIG"; }

# These lines follow, and replace, those of every cluster.
write_existing_env() {
  printf '%s\n' "# There is no Kubernetes of its own: an existing cluster is used." NODE= POD_RANGE= SERVICE_RANGE= \
    DNS_SERVICE_ADDRESS= AUDIT_LOG= "APISERVER=$SERVER_SCHEME://198.18.$1.1:$API_RELAY_PORT$SERVER_PATH"
  printf 'EXISTING_CONTEXT=%q\nRUNNERS_ADDRESS=%q\n' "$(given '."current-context"')" "$RUNNERS_ADDRESS"
}

existing_up() {
  (
    umask 077
    # As given, for when the relays have ended; and for everything else, by way of the relay.
    printf '%s\n' "$GIVEN_KUBECONFIG" >"$STATE/existing.kubeconfig"
    jq --arg server "$APISERVER" --arg host "$(tr -d '[]' <<<"$SERVER_HOST")" '.clusters[0].cluster |= (.server = $server
      | if $server | startswith("https:") then .["tls-server-name"] //= $host else . end)' \
      "$STATE/existing.kubeconfig" >"$STATE/admin.kubeconfig"
  )
  # shellcheck disable=SC2153 # of hack/cluster
  start_box "$STATE/node.pid" "pw-$NAME" catatonit -P
  start_relay api "$HOST_ADDRESS" $API_RELAY_PORT "$SERVER_HOST:$SERVER_PORT"
  start_relay runners "$RUNNERS_ADDRESS" $RUNNERS_PORT "$NODE_ADDRESS:$RUNNERS_PORT"
  timed 'API server answers' until_true 120 in_network "$NAME" "$KUBECTL" --kubeconfig="$ADMIN_KUBECONFIG" --request-timeout=5s \
    get --raw /version || die "the API server at $SERVER_HOST:$SERVER_PORT does not answer, or refuses these credentials"
}

# start_relay NAME ADDRESS PORT TARGET: a program of the host, so it needs no forwarding of packets. Its box ends its connections
# with it.
start_relay() {
  local file=$STATE/relays/$1.pid
  start_box "$file" '' socat "TCP-LISTEN:$3,bind=$2,fork,reuseaddr" "TCP:$4"
  until_true 60 relay_listens "$file" "$2:$3" || die "the relay at $2:$3 does not start: $(tail -n 2 "$file.log")"
}

relay_listens() { ss -Hltnp "src $2" | grep -q "pid=$(cut -d' ' -f1 "$1"),"; }

# load_image_into_kind NAME PROGRAM [ENTRYPOINT_ARGUMENT...]: prints the image's name.
load_image_into_kind() {
  local name archive=$STATE/image.tar
  if [[ $EXISTING_CONTEXT != kind-* ]] || ! command -v kind >/dev/null; then
    die "images can be loaded into an existing cluster only when its context is kind-NAME and kind is on the PATH"
  fi
  name=$(full_image_name "$1")
  shift
  image_archive "$archive" "$name" "$@"
  kind load image-archive "$archive" --name "${EXISTING_CONTEXT#kind-}" >"$STATE/logs/images.log" 2>&1 || {
    tail -n 5 "$STATE/logs/images.log" >&2
    die "image $name was not loaded by kind"
  }
  rm "$archive"
  printf '%s' "$name"
}
