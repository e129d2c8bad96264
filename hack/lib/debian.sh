# shellcheck shell=bash disable=SC2034
# Where this host's apt gets Debian from: devices and their roots use the same mirror. Sourced, after common.sh.

DEVICE_SUITE=bookworm

# mirror_of SUFFIX: the address of this host's suite CODENAME or CODENAME-security, component main.
mirror_of() {
  local codename uri
  # shellcheck disable=SC1091
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  # shellcheck disable=SC2016 # apt expands these
  uri=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$codename$1" '$1 == release && $2 == "main" && !found++ { print $3 }')
  # Cloud images name a file that lists mirrors.
  case $uri in mirror+file:*) uri=$(grep -m1 -oE '^[a-z]+://[^ ]+' "${uri#mirror+file:}" || true) ;; esac
  [[ -n $uri ]] || die "apt's configuration on this host has no suite $codename$1 with the component main"
  printf '%s' "${uri%/}"
}

# What this host's apt is told of proxies and of clocks, as lines of apt.conf.
apt_acquire_settings() {
  apt-config dump | grep -E '^Acquire::(Check-Date|Check-Valid-Until|https?::Proxy) ' || true
}
