# shellcheck shell=bash
# The root file system that all test devices share, read-only: Debian's released packages, without the security updates
# that came since, so that a device has real updates outstanding. Sourced by hack/devices, after debian.sh.

# Another recipe is another root: raise this when what build_root does changes.
ROOT_RECIPE=1

device_root() { printf '%s/roots/%s-minbase-%s' "$PATCHWARDEN_CACHE" "$DEVICE_SUITE" "$ROOT_RECIPE"; }

# Makes the root if it is not there; others who need it wait meanwhile.
ensure_root() {
  [[ ! -d $(device_root) ]] || return 0
  mkdir -p "$PATCHWARDEN_CACHE/roots"
  (
    flock 9
    [[ -d $(device_root) ]] || timed "root of the devices made" build_root "$(device_root)" "$1" "$2"
  ) 9>"$PATCHWARDEN_CACHE/roots/.lock"
}

# What more is on a root of this kind: a package manager of rpm packages (dnf's plugins and zypper cannot be on one Debian;
# packages are made there, too), or systemd and the updater of the system itself, or the programs of GRUB.
KIND_RECIPE=1
packages_of_kind() {
  local rpm='rpm createrepo-c gnupg'
  case $1 in
    dnf) echo "dnf dnf-plugins-core $rpm" ;;
    dnf5) echo "dnf5 python3-libdnf5 $rpm" ;;
    zypper) echo "zypper $rpm" ;;
    systemd) echo systemd-sysv dbus unattended-upgrades ;;
    grub) echo grub-common grub2-common ;;
    *) return 1 ;;
  esac
}

# Debian has dnf 5 only from this one on.
DNF5_SUITE=forky
suite_of_kind() { [[ $1 != dnf5 ]] && echo "$DEVICE_SUITE" || echo "$DNF5_SUITE"; }

root_of_kind() {
  printf '%s/roots/%s-%s-%s.%s' "$PATCHWARDEN_CACHE" "$(suite_of_kind "$1")" "$1" "$ROOT_RECIPE" "$KIND_RECIPE"
}

# ensure_root_of_kind KIND MIRROR: a root with Debian's dnf, dnf5 or zypper, and an rpm database of its own; or with systemd or GRUB. The
# root of the devices is there.
ensure_root_of_kind() {
  [[ ! -d $(root_of_kind "$1") ]] || return 0
  (
    flock 9
    [[ -d $(root_of_kind "$1") ]] || timed "root with $1 made" build_root_of_kind "$1" "$(root_of_kind "$1")" "$2"
  ) 9>"$PATCHWARDEN_CACHE/roots/.lock"
}

# build_root_of_kind KIND DIRECTORY MIRROR
build_root_of_kind() {
  local partial=${2%/*}/.partial packages
  read -r -d '' -a packages < <(packages_of_kind "$1") || true
  rm -rf --one-file-system "$partial"
  say "making the root with $1 (a minute or two, once)"
  if [[ $1 == dnf5 ]]; then
    bootstrap "$DNF5_SUITE" "$partial" "$3"
    apt_acquire_settings >"$partial/etc/apt/apt.conf.d/10host"
  else
    cp -a "$(device_root)" "$partial"
  fi
  upstream_resolv_conf >"$partial/etc/resolv.conf"
  unshare --mount --pid --fork --root="$partial" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C \
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}" >"$partial.log" 2>&1 || {
    tail -n 15 "$partial.log" >&2
    die "the packages for $1 cannot be installed; all apt said is in $partial.log"
  }
  rm -f "$partial"/var/cache/apt/archives/*.deb
  if [[ -e $partial/usr/bin/rpm ]]; then
    # Debian's keeps a database for each user.
    mkdir -p "$partial/etc/rpm"
    echo '%_dbpath /var/lib/rpm' >"$partial/etc/rpm/macros"
  fi
  mv "$partial" "$2"
  rm -f "$partial.log"
}

# bootstrap SUITE DIRECTORY MIRROR...: the least of that Debian, from the first mirror.
bootstrap() {
  local suite=$1 directory=$2 include=()
  shift 2
  # Only a mirror reached by TLS needs them.
  [[ $* != *https:* ]] || include=(--include=ca-certificates)
  # Its scripts are named after the releases that were known when it was made; all newer ones are made alike.
  local script=/usr/share/debootstrap/scripts/$suite
  [[ -e $script ]] || script=/usr/share/debootstrap/scripts/sid
  debootstrap --variant=minbase "${include[@]}" "$suite" "$directory" "$1" "$script" >"$directory.log" 2>&1 || {
    tail -n 15 "$directory.log" >&2
    die "debootstrap failed; all it said is in $directory.log"
  }
}

# build_root DIRECTORY MIRROR SECURITY_MIRROR
build_root() {
  local partial=${1%/*}/.partial
  rm -rf --one-file-system "$partial"
  say "making the root of the devices (half a minute, once)"
  bootstrap "$DEVICE_SUITE" "$partial" "$2" "$3"
  cat >"$partial/etc/apt/sources.list" <<EOF
deb $2 $DEVICE_SUITE main
deb $3 $DEVICE_SUITE-security main
EOF
  apt_acquire_settings >"$partial/etc/apt/apt.conf.d/10host"
  # A device that is made later then only asks whether the lists are still the newest.
  upstream_resolv_conf >"$partial/etc/resolv.conf"
  unshare --mount --pid --fork --root="$partial" apt-get update -q >>"$partial.log" 2>&1 || {
    tail -n 15 "$partial.log" >&2
    die "apt-get update failed in the new root; all it said is in $partial.log"
  }
  rm -f "$partial"/var/cache/apt/archives/*.deb "$partial/etc/hostname" "$partial/etc/machine-id"
  warn_of_few_updates "$partial"
  mv "$partial" "$1"
  rm -f "$partial.log"
}

warn_of_few_updates() {
  local count
  count=$(LC_ALL=C unshare --mount --pid --fork --root="$1" apt-get -s dist-upgrade | grep -c '^Inst .*Debian-Security' || true)
  say "$count security updates are outstanding on a new device"
  ((count >= 2)) || warn "fewer than 2: Debian has just made a point release; tests of real security updates have little to do"
}
