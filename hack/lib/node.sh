# shellcheck shell=bash
# The cluster's only node: a box of namespaces (PID, mount, UTS, IPC, the cluster's network) in which the control plane,
# the kubelet and all pods run. Its PID 1 is catatonit: when that is killed the kernel kills every process in the box,
# and with the last of them all mounts go. Sourced by hack/cluster, after common.sh.

# What the kubelet would set for the whole machine. In the box plain files hide them, so the machine is left alone.
KUBELET_SYSCTLS='vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys
kernel/keys/root_maxbytes'

# A process is remembered by PID and start time (field 22 of its stat), so that a PID used again is not mistaken for it.
# One that is dead and only waits to be reaped has no identity any more.
process_identity() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # The command's name, in parentheses, may hold anything; after it come state (field 3) and the rest.
  awk -v pid="$1" '$1 !~ /[ZX]/ { print pid, $20 }' <<<"${stat##*) }"
}

# is_running FILE: whether the process that FILE remembers still runs.
is_running() {
  local remembered
  [[ -s $1 ]] && read -r remembered <"$1" || return 1
  [[ $(process_identity "${remembered%% *}") == "$remembered" ]]
}

# kill_remembered FILE: kills exactly that process, and returns once it is gone.
kill_remembered() {
  is_running "$1" || return 0
  kill -KILL "$(cut -d' ' -f1 "$1")" 2>/dev/null || true
  until_true 120 is_gone "$1" || die "process $(<"$1") does not die"
}

is_gone() { ! is_running "$1"; }

# start_box PIDFILE NETNS COMMAND...: runs the command as PID 1 of new namespaces. Its parent (unshare) only waits for it.
# Without NETNS (the empty word) its network is the host's.
start_box() {
  local file=$1 netns=$2 parent enter=()
  shift 2
  [[ -z $netns ]] || enter=(nsenter --net="/run/netns/$netns" --)
  "${enter[@]}" setsid unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc -- "$@" \
    </dev/null >>"$file.log" 2>&1 &
  parent=$!
  disown "$parent"
  process_identity "$parent" >"$file.parent"
  until_true 60 box_has_begun "$parent" || {
    warn "a box of namespaces did not start: $(tail -n 3 "$file.log")"
    return 1
  }
  process_identity "$(pgrep -P "$parent")" >"$file"
}

# Until it runs the command, the child is a copy of unshare that still mounts its /proc.
box_has_begun() {
  local child name
  child=$(pgrep -P "$1") || return 1
  name=$(cat "/proc/$child/comm") || return 1
  [[ $name != unshare ]]
}

stop_box() {
  kill_remembered "$1"
  kill_remembered "$1.parent"
}

# The cgroup under which the kubelet makes its own: on every hierarchy of a cgroup v1 host, or on the one of v2.
cgroup_hierarchies() {
  if [[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]]; then
    echo /sys/fs/cgroup
  else
    findmnt -rno TARGET -t cgroup,cgroup2
  fi
}

cgroups_up() {
  local hierarchy file
  for hierarchy in $(cgroup_hierarchies); do
    mkdir -p "$hierarchy/pw-$1"
    if [[ -e $hierarchy/cpuset.cpus && -e $hierarchy/cpuset.mems ]]; then
      # cgroup v1: a new cpuset is empty and accepts no process.
      for file in cpuset.cpus cpuset.mems; do cat "$hierarchy/$file" >"$hierarchy/pw-$1/$file"; done
    fi
    if [[ $hierarchy == /sys/fs/cgroup ]]; then
      for file in $(<"$hierarchy/cgroup.controllers"); do
        echo "+$file" >"$hierarchy/cgroup.subtree_control" 2>/dev/null || true
        echo "+$file" >"$hierarchy/pw-$1/cgroup.subtree_control" 2>/dev/null || true
      done
    fi
  done
}

cgroups_down() {
  local hierarchy
  for hierarchy in $(cgroup_hierarchies); do
    [[ -d $hierarchy/pw-$1 ]] || continue
    until_true 60 remove_cgroup "$hierarchy/pw-$1" || die "cgroup $hierarchy/pw-$1 is still in use"
  done
}

remove_cgroup() {
  find "$1" -depth -type d -exec rmdir {} +
}

# node_up STATE NAME
node_up() {
  local state=$1 name=$2
  cgroups_up "$name"
  start_box "$state/node.pid" "pw-$name" catatonit -P
  in_node "$state" bash -euc "$(declare -f node_mounts); node_mounts \"\$@\"" - \
    "$state" "$name" "$PATCHWARDEN_CACHE" "$KUBELET_SYSCTLS"
}

# Runs inside the new mount namespace. /var is an overlay whose changes are kept in memory, so that nothing that the
# kubelet, CNI or containerd write by habit reaches the host; /run is empty. The state and the cache stay what they are,
# wherever they lie: they are held open, by descriptor, while their paths are covered.
node_mounts() {
  local state=$1 name=$2 cache=$3 sysctls=$4 sysctl
  mount --make-rprivate /
  echo "$name" >/proc/sys/kernel/hostname
  exec 7<"$state" 8<"$cache"
  mount -t tmpfs -o mode=755 tmpfs /mnt
  mkdir -p /mnt/upper /mnt/work /mnt/state /mnt/cache /mnt/sysctl
  (cd /proc/self/fd/7 && mount --no-canonicalize --bind . /mnt/state)
  (cd /proc/self/fd/8 && mount --no-canonicalize --bind . /mnt/cache)
  mount -t overlay -o lowerdir=/var,upperdir=/mnt/upper,workdir=/mnt/work overlay /var
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/lock "$state" "$cache"
  mount --bind /mnt/state "$state"
  mount --bind /mnt/cache "$cache"
  for sysctl in $sysctls; do
    [[ -e /proc/sys/$sysctl ]] || continue
    cat "/proc/sys/$sysctl" >"/mnt/sysctl/${sysctl//\//.}"
    mount --bind "/mnt/sysctl/${sysctl//\//.}" "/proc/sys/$sysctl"
  done
}

in_node() {
  local state=$1
  shift
  nsenter --target "$(cut -d' ' -f1 "$state/node.pid")" --mount --uts --ipc --pid --net -- "$@"
}

# start STATE COMPONENT COMMAND...: a daemon in the box, its output in logs/COMPONENT.log. It belongs to the box's PID 1.
start() {
  local state=$1 component=$2
  shift 2
  # shellcheck disable=SC2016 # the shell in the box expands it
  in_node "$state" setsid --fork sh -c 'echo $$ >"$0"; exec "$@"' "$state/pids/$component" "$@" \
    </dev/null >>"$state/logs/$component.log" 2>&1
}

component_runs() { in_node "$1" sh -c "kill -0 \$(cat '$1/pids/$2')" 2>/dev/null; }

# stop STATE COMPONENT SIGNAL: ends a daemon in the box, and waits until it is gone.
stop() {
  # shellcheck disable=SC2016 # the shell in the box expands it
  in_node "$1" sh -c 'kill "-$1" "$(cat "$0")"' "$1/pids/$2" "$3"
  until_true 120 component_has_ended "$1" "$2" || die "$2 does not end"
  # The next one writes its own, which `await` must not take for this one's.
  rm "$1/pids/$2"
}

component_has_ended() { ! component_runs "$1" "$2"; }

# await STATE COMPONENT SECONDS COMMAND...: until the condition holds; at once a failure when the component has ended.
await() {
  local state=$1 component=$2 seconds=$3 deadline=$((SECONDS + $3)) said
  shift 3
  until said=$("$@" 2>&1); do
    if [[ -s $state/pids/$component ]] && ! component_runs "$state" "$component"; then
      warn "$component ended by itself"
    elif ((SECONDS >= deadline)); then
      warn "not so after $seconds s: $*; $said"
    else
      sleep 0.05
      continue
    fi
    show_log "$state" "$component"
    return 1
  done
}

show_log() {
  warn "the end of $1/logs/$2.log:"
  tail -n 15 "$1/logs/$2.log" | cut -c1-400 >&2
}
