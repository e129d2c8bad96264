# shellcheck shell=bash disable=SC2034
# What every command in hack/ shares: where things are kept, how a step is announced and timed, how a command fails.
# Sourced, never run. The commands set `set -euo pipefail` themselves.

# Where su and sudo may have left them out.
PATH=$PATH:/usr/sbin:/sbin
HACK=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# What is expensive to make and the same for every cluster: built programs, device roots.
PATCHWARDEN_CACHE=${PATCHWARDEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/patchwarden}
# What belongs to one running cluster: a directory for each, removed with it.
PATCHWARDEN_STATE=${PATCHWARDEN_STATE:-/var/lib/patchwarden-dev}

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  warn "$*"
  exit 1
}

# Prints the header comment of the running script, which is its manual.
help() { sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p;}' "$0"; }

# Fails with the usage when a command line cannot be understood.
misused() {
  warn "$*"
  warn "see $0 --help"
  exit 2
}

# Seconds since START (a value of $EPOCHREALTIME), with one decimal.
elapsed() {
  local start=${1/[.,]/} end=${EPOCHREALTIME/[.,]/}
  local tenths=$(((end - start + 50000) / 100000))
  printf '%d.%d s' $((tenths / 10)) $((tenths % 10))
}

# timed WORDS COMMAND...: runs the command and says how long it took: "WORDS (1.2 s)". Never in a condition: there, bash
# would go on after a failure inside of the command.
timed() {
  local words=$1 start=$EPOCHREALTIME
  shift
  "$@"
  say "$words ($(elapsed "$start"))"
}

# until_true SECONDS COMMAND...: polls a condition, quietly, until it holds; fails, and says what the condition said last,
# when the time is over. In a shell of its own, so that no error in a condition ends this one.
until_true() {
  local said deadline=$((SECONDS + $1))
  shift
  until said=$("$@" 2>&1); do
    if ((SECONDS >= deadline)); then
      [[ -z $said ]] || warn "$said"
      return 1
    fi
    sleep 0.1
  done
}

need_root() { [[ $EUID -eq 0 ]] || die "must be root: it makes namespaces, mounts and network interfaces"; }

# A cluster's name ends up in an interface's (15 characters, of which "pw-" is 3), and before a "-" in those of devices.
need_cluster_name() {
  [[ $1 =~ ^[a-z][a-z0-9]{0,11}$ ]] ||
    misused "cluster \"$1\": a name is a letter followed by up to 11 letters and digits, all small"
}
