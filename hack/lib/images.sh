# shellcheck shell=bash
# Container images from nothing but one static program: an OCI archive needs no more than tar, jq and sha256sum.
# Sourced by hack/cluster and hack/chart, after common.sh.

# The name under which Kubernetes asks for an image: "runner" is docker.io/library/runner:latest.
full_image_name() {
  local name=$1 first=${1%%/*}
  [[ ${name##*/} == *:* ]] || name+=:latest
  if [[ $name != */* ]]; then
    name=docker.io/library/$name
  elif [[ $first != *.* && $first != *:* && $first != localhost ]]; then
    name=docker.io/$name
  fi
  printf '%s' "$name"
}

image_architecture() {
  case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) die "no container architecture is known for $(uname -m)" ;;
  esac
}

# Keeps a file as a blob of the image; prints its descriptor.
blob() {
  local layout=$1 file=$2 type=$3 digest
  digest=$(sha256sum "$file" | cut -d' ' -f1)
  mv "$file" "$layout/blobs/sha256/$digest"
  jq -nc --arg type "$type" --arg digest "sha256:$digest" --argjson size "$(stat -c %s "$layout/blobs/sha256/$digest")" \
    '{mediaType: $type, digest: $digest, size: $size}'
}

# image_archive FILE NAME PROGRAM [ENTRYPOINT_ARGUMENT...]: user 65532, the program at /NAME_OF_PROGRAM.
image_archive() {
  local archive=$1 name=$2 program=$3 work word layer config manifest diff_id
  shift 3
  work=$(mktemp -d)
  mkdir -p "$work/layout/blobs/sha256" "$work/root/tmp"
  install -m 755 "$program" "$work/root/${program##*/}"
  chmod 1777 "$work/root/tmp"
  tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work/root" -cf "$work/layer.tar" .
  diff_id=sha256:$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
  layer=$(blob "$work/layout" "$work/layer.tar" application/vnd.oci.image.layer.v1.tar)
  # Word by word, and by stdin, since jq would take some for its own options.
  for word in "/${program##*/}" "$@"; do printf '%s' "$word" | jq -Rs .; done |
    jq -sc --arg arch "$(image_architecture)" --arg diff "$diff_id" \
      '{os: "linux", architecture: $arch, rootfs: {type: "layers", diff_ids: [$diff]},
        config: {User: "65532:65532", WorkingDir: "/", Entrypoint: .}}' >"$work/config"
  config=$(blob "$work/layout" "$work/config" application/vnd.oci.image.config.v1+json)
  jq -nc --argjson config "$config" --argjson layer "$layer" \
    '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: [$layer]}' \
    >"$work/manifest"
  manifest=$(blob "$work/layout" "$work/manifest" application/vnd.oci.image.manifest.v1+json)
  jq -nc --argjson manifest "$manifest" --arg name "$name" \
    '{schemaVersion: 2, manifests: [$manifest + {annotations: {"io.containerd.image.name": $name}}]}' \
    >"$work/layout/index.json"
  echo '{"imageLayoutVersion":"1.0.0"}' >"$work/layout/oci-layout"
  tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work/layout" -cf "$archive" .
  rm -r "$work"
}

# load_image STATE NAME PROGRAM [ENTRYPOINT_ARGUMENT...]
load_image() {
  local state=$1 name
  name=$(full_image_name "$2")
  shift 2
  image_archive "$state/image.tar" "$name" "$@"
  in_node "$state" "$(module_dir containerd)/ctr" -n k8s.io images import "$state/image.tar" >"$state/logs/images.log" 2>&1 || {
    tail -n 5 "$state/logs/images.log" >&2
    die "image $name was not loaded"
  }
  rm "$state/image.tar"
  printf '%s' "$name"
}
