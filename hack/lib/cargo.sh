# Programs of Cargo's, built at a version into the cache.

# cargo_program NAME VERSION: its path; builds it where it is missing.
cargo_program() {
  local root=$PATCHWARDEN_CACHE/tools/$1-$2
  if [[ ! -x $root/bin/$1 ]]; then
    say "building $1 $2 into $root (some minutes, once)" >&2
    # For the host, and apart from the project's own build.
    env -u CARGO_BUILD_TARGET -u CARGO_TARGET_DIR cargo install --quiet --locked --version "$2" --root "$root" "$1" >&2
  fi
  echo "$root/bin/$1"
}
