# shellcheck shell=bash
# The headers of musl for aarch64, by which C is compiled for it: Debian's, unpacked and not installed, since this host is of another
# architecture. The library itself is Rust's. Sourced, after common.sh.

# The same version as this host's own, which hack/prerequisites installs.
MUSL_HEADERS=$PATCHWARDEN_CACHE/tools/musl-dev-arm64-$(dpkg-query -Wf '${Version}' musl-dev 2>/dev/null || true)

musl_headers_are_there() { [[ -d $MUSL_HEADERS ]]; }

# fetch_musl_headers: with lists of apt's own for that architecture, so that this host's apt does not change.
fetch_musl_headers() {
  local partial apt fetched=''
  ! musl_headers_are_there || return 0
  mkdir -p "$PATCHWARDEN_CACHE/tools"
  partial=$(mktemp -d "$PATCHWARDEN_CACHE/tools/.partial-musl-XXXXXX")
  # apt fetches as its own user where it can.
  chmod 755 "$partial"
  mkdir "$partial/lists" "$partial/cache"
  apt=(apt-get -q -o "Dir::State::Lists=$partial/lists" -o "Dir::Cache=$partial/cache" -o APT::Architecture=arm64 -o 'APT::Architectures::=arm64')
  if (cd "$partial" && "${apt[@]}" update && "${apt[@]}" download musl-dev) && dpkg-deb -x "$partial"/musl-dev_*_arm64.deb "$partial/root"; then
    mv -T "$partial/root/usr/include/aarch64-linux-musl" "$MUSL_HEADERS" || musl_headers_are_there
    fetched=yes
  fi
  rm -r "$partial"
  [[ -n $fetched ]]
}
