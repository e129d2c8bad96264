# shellcheck shell=bash
# Prometheus and Alertmanager as Debian has them, unpacked and not installed: their packages would start servers. Sourced, after common.sh.

# debian_version PACKAGE: what this host's apt would install.
debian_version() { apt-cache policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'; }

# prometheus_program NAME [PACKAGE]: where prometheus, promtool or another program is; its package is fetched if it is not there yet.
prometheus_program() {
  local package=${2:-prometheus} version directory partial
  version=$(debian_version "$package")
  if [[ -z $version ]]; then
    apt-get update -q >&2
    version=$(debian_version "$package")
  fi
  [[ -n $version ]] || die "apt knows no package $package (Debian 12, component main)"
  directory=$PATCHWARDEN_CACHE/tools/$package-$version-usr
  if [[ ! -d $directory ]]; then
    partial=$(mktemp -d "$PATCHWARDEN_CACHE/tools/.partial-prometheus-XXXXXX")
    # apt fetches as its own user where it can.
    chmod 755 "$partial"
    # What apt knew of may have been replaced since.
    (cd "$partial" && { apt-get download -q "$package" || { apt-get update -q && apt-get download -q "$package"; }; } >&2) ||
      die "apt-get download $package failed"
    dpkg-deb -x "$partial"/*.deb "$partial/root"
    mv -T "$partial/root/usr" "$directory" || [[ -d $directory ]]
    rm -r "$partial"
  fi
  printf '%s' "$directory/bin/$1"
}
