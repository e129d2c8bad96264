# shellcheck shell=bash disable=SC2034
# A cluster's network: a network namespace, joined to the host by a veth pair, with NAT to the outside.
# Sourced by hack/cluster and hack/devices, after common.sh.
#
#   host  198.18.N.1 --veth-- 198.18.N.2  cluster's namespace  --ptp-- pods     198.19.0.0/22
#                                                              --bridge devices  198.19.64.0/22
#
# 198.18.0.0/15 is the range for testing devices (RFC 2544): no real network uses it. Only the veth's /24 is seen by the
# host, so only that differs from cluster to cluster.

PODS=198.19.0.0/22
SERVICES=198.19.128.0/20
KUBERNETES_SERVICE_ADDRESS=198.19.128.1
DNS_SERVICE_ADDRESS=198.19.128.10
DEVICES=198.19.64.0/22
DEVICE_GATEWAY_ADDRESS=198.19.64.1
DEVICE_BRIDGE=devices

# The words of a route: default via ADDRESS dev NAME ...
default_route_device() {
  ip -4 -o route show default | awk 'NR == 1 { for (i = 1; i < NF; i++) if ($i == "dev") print $(i + 1) }'
}

# The host's own address on the interface of its default route.
default_route_address() {
  local device
  device=$(default_route_device)
  [[ -z $device ]] || ip -4 -o addr show dev "$device" scope global | awk 'NR == 1 { sub("/.*", "", $4); print $4 }'
}

is_host_address() { [[ $1 =~ ^[0-9.]+$ && -n $(ip -4 -o addr show to "$1/32" 2>/dev/null) ]]; }

# Tunnels make a host's MTU smaller than Ethernet's. A veth that does not know loses every large packet.
host_mtu() {
  local device
  device=$(default_route_device)
  cat "/sys/class/net/${device:-lo}/mtu" 2>/dev/null || echo 1500
}

# The third number of the cluster's /24: from its name, or the next that no other interface has.
pick_subnet() {
  local n tries
  n=$(($(cksum <<<"$1" | cut -d' ' -f1) % 256))
  for ((tries = 0; tries < 256; tries++)); do
    [[ -n $(ip -4 -o addr show to "198.18.$n.0/24") ]] || break
    n=$(((n + 1) % 256))
  done
  ((tries < 256)) || die "no /24 of 198.18.0.0/16 is free"
  printf '%d' "$n"
}

# What names are resolved by: the host's resolvers, unless they listen on the host's loopback, where nothing inside
# a network namespace reaches them.
upstream_resolv_conf() {
  local file
  for file in /etc/resolv.conf /run/systemd/resolve/resolv.conf; do
    grep -Eq '^nameserver +(127\.|::1)' "$file" 2>/dev/null && continue
    grep -E '^nameserver +[0-9.]+$' "$file" 2>/dev/null && return
  done
  warn "every resolver of this host listens on its loopback: names outside of the cluster will not resolve"
  # Reserved for documentation (RFC 5737): no answer, but a file that parses.
  echo nameserver 192.0.2.53
}

# Other clusters may be up, so forwarding is on as long as any is, and what it was is remembered beside them.
forwarding_on() {
  [[ $(</proc/sys/net/ipv4/ip_forward) == 1 ]] && return
  touch "$PATCHWARDEN_STATE/.ip-forward-was-off"
  echo 1 >/proc/sys/net/ipv4/ip_forward
}

forwarding_restored() {
  [[ -e $PATCHWARDEN_STATE/.ip-forward-was-off ]] || return 0
  [[ -z $(nft list tables | grep '^table ip pw-' || true) ]] || return 0
  echo 0 >/proc/sys/net/ipv4/ip_forward
  rm "$PATCHWARDEN_STATE/.ip-forward-was-off"
}

# network_up CLUSTER SUBNET_NUMBER
network_up() {
  local name=$1 net=198.18.$2 in="ip -n pw-$1" mtu
  mtu=$(host_mtu)
  ip netns add "pw-$name"
  ip link add "pw-$name" mtu "$mtu" type veth peer name eth0 mtu "$mtu" netns "pw-$name"
  ip addr add "$net.1/24" dev "pw-$name"
  ip link set "pw-$name" up
  $in link set lo up
  $in addr add "$net.2/24" dev eth0
  $in link set eth0 up
  $in route add default via "$net.1"
  $in link add "$DEVICE_BRIDGE" mtu "$mtu" type bridge
  $in addr add "$DEVICE_GATEWAY_ADDRESS/${DEVICES#*/}" dev "$DEVICE_BRIDGE"
  $in link set "$DEVICE_BRIDGE" up
  forwarding_on
  nft -f - <<EOF
table ip pw-$name {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr $net.0/24 oifname != "pw-$name" masquerade
  }
}
EOF
  in_network "$name" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; nft -f -' <<EOF
table ip patchwarden {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr { $PODS, $DEVICES } oifname "eth0" masquerade
  }
}
EOF
}

network_down() {
  local name=$1
  ! ip link show "pw-$name" >/dev/null 2>&1 || ip link delete "pw-$name"
  [[ ! -e /run/netns/pw-$name ]] || ip netns delete "pw-$name"
  ! nft list table ip "pw-$name" >/dev/null 2>&1 || nft delete table ip "pw-$name"
  forwarding_restored
}

# in_network CLUSTER COMMAND...: only the network is the cluster's; files and processes are the host's. (`ip netns exec`
# would also mount another /sys.)
in_network() {
  local name=$1
  shift
  nsenter --net="/run/netns/pw-$name" -- "$@"
}
