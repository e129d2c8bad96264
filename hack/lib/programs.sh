# shellcheck shell=bash
# How programs that are shipped are built: static, and the same bytes in whatever directory and by whomever. Sourced, after common.sh.

# build_program ARCHITECTURE PROFILE CARGO_ARGUMENT...: for musl. Of the same sources the bytes depend on Rust's version, and on that of
# the C compiler.
build_program() {
  local architecture=$1 profile=$2 target=$1-unknown-linux-musl cargo=(cargo)
  shift 2
  # Where the sources of dependencies lie is known once they are there.
  cargo fetch --locked --quiet --target "$target"
  CARGO_ENCODED_RUSTFLAGS=$(without_paths)
  export CARGO_ENCODED_RUSTFLAGS
  [[ $architecture == "$(uname -m)" ]] || cargo=("$HACK/cargo-for" "$target")
  CARGO_BUILD_TARGET=$target "${cargo[@]}" build --profile "$profile" --locked "$@"
  unset CARGO_ENCODED_RUSTFLAGS
}

# Where build_program puts it.
built_program() { printf '%s/%s-unknown-linux-musl/%s/%s' "${CARGO_TARGET_DIR:-target}" "$1" "$2" "$3"; }

# Flags of rustc by which no path of this machine is in a program, as its messages of panics have them. Of several that fit the last counts.
without_paths() {
  local flags=() directory cargo_home=${CARGO_HOME:-$HOME/.cargo}
  flags+=("--remap-path-prefix=$PWD=/patchwarden")
  flags+=("--remap-path-prefix=$(realpath -m "${CARGO_TARGET_DIR:-target}")=/target")
  for directory in "$cargo_home"/registry/src/*/; do flags+=("--remap-path-prefix=${directory%/}=/crates"); done
  flags+=("--remap-path-prefix=$(rustc --print sysroot)=/rust")
  (IFS=$'\x1f' && printf '%s' "${flags[*]}")
}

# need_shippable PROGRAM ARCHITECTURE: static is what asks for no interpreter and for no library.
need_shippable() {
  local program=$1 headers machine directory
  headers=$(readelf --wide --file-header --program-headers --dynamic "$program")
  case $2 in
    x86_64) machine=X86-64 ;;
    aarch64) machine=AArch64 ;;
    *) die "no architecture that is known here: \"$2\"" ;;
  esac
  grep -q "Machine: .*$machine" <<<"$headers" || die "$program: is not for $2"
  if grep -E 'INTERP|\(NEEDED\)' <<<"$headers" >&2; then
    die "$program: is not static"
  fi
  for directory in "$PWD" "${CARGO_HOME:-$HOME/.cargo}"; do
    ! grep -qF "$directory/" "$program" || die "$program: has paths of this machine in it ($directory)"
  done
}
