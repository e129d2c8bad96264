# shellcheck shell=bash
# Prometheus as Debian has it, unpacked and not installed: its package would start a server. Sourced, after common.sh.

# The version that this host's apt would install.
prometheus_version() { apt-cache policy prometheus | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'; }

# prometheus_program NAME: where prometheus or promtool is; the package is fetched if it is not there yet.
prometheus_program() {
  local version directory partial
  version=$(prometheus_version)
  if [[ -z $version ]]; then
    apt-get update -q >&2
    version=$(prometheus_version)
  fi
  [[ -n $version ]] || die "apt knows no package prometheus (Debian 12, component main)"
  directory=$PATCHWARDEN_CACHE/tools/prometheus-$version
  if [[ ! -d $directory ]]; then
    partial=$(mktemp -d "$PATCHWARDEN_CACHE/tools/.partial-prometheus-XXXXXX")
    # apt fetches as its own user where it can.
    chmod 755 "$partial"
    # What apt knew of may have been replaced since.
    (cd "$partial" && { apt-get download -q prometheus || { apt-get update -q && apt-get download -q prometheus; }; } >&2) ||
      die "apt-get download prometheus failed"
    dpkg-deb -x "$partial"/*.deb "$partial/root"
    mv -T "$partial/root/usr/bin" "$directory" || [[ -d $directory ]]
    rm -r "$partial"
  fi
  printf '%s' "$directory/$1"
}
