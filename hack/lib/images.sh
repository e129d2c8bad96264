# shellcheck shell=bash
# Container images from nothing but one static program: an OCI archive needs no more than tar, gzip, jq and sha256sum.
# Sourced by hack/cluster and packaging/images, after common.sh.

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

# image_architecture ARCHITECTURE: what the kernel calls x86_64 is amd64 of images.
image_architecture() {
  case $1 in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) die "no container architecture is known for $1" ;;
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

# image_manifest LAYOUT ARCHITECTURE LABELS FILES PROGRAM [ENTRYPOINT_ARGUMENT...]: prints the descriptor of one platform's image: user
# 65532, the program at /NAME_OF_PROGRAM, and what lies in the directory FILES, if there is one. With LABELS, a JSON object, it is one
# that is shipped: its layer is compressed, so that nobody on its way does it in another way, which would change its digest.
image_manifest() {
  local layout=$1 architecture=$2 labels=$3 files=$4 program=$5 work word diff_id layer config type=application/vnd.oci.image.layer.v1.tar
  shift 5
  work=$(mktemp -d)
  install -d -m 755 "$work/root"
  [[ -z $files ]] || cp -r --no-preserve=all "$files/." "$work/root"
  install -m 755 "$program" "$work/root/${program##*/}"
  install -d -m 1777 "$work/root/tmp"
  reproducible_tar "$work/root" "$work/layer"
  diff_id=sha256:$(sha256sum "$work/layer" | cut -d' ' -f1)
  if [[ -n $labels ]]; then
    gzip -9 --no-name "$work/layer"
    mv "$work/layer.gz" "$work/layer"
    type+=+gzip
  fi
  layer=$(blob "$layout" "$work/layer" "$type")
  # Word by word, and by stdin, since jq would take some for its own options.
  for word in "/${program##*/}" "$@"; do printf '%s' "$word" | jq -Rs .; done |
    jq -sc --arg architecture "$architecture" --arg diff "$diff_id" --argjson labels "${labels:-null}" \
      '{os: "linux", architecture: $architecture, rootfs: {type: "layers", diff_ids: [$diff]},
        config: ({User: "65532:65532", WorkingDir: "/", Entrypoint: .} + if $labels then {Labels: $labels} else {} end)}
        + if $labels then {created: $labels["org.opencontainers.image.created"]} else {} end' >"$work/config"
  config=$(blob "$layout" "$work/config" application/vnd.oci.image.config.v1+json)
  jq -nc --argjson config "$config" --argjson layer "$layer" --argjson labels "${labels:-null}" \
    '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: [$layer]}
      + if $labels then {annotations: $labels} else {} end' >"$work/manifest"
  blob "$layout" "$work/manifest" application/vnd.oci.image.manifest.v1+json
  rm -r "$work"
}

# reproducible_tar DIRECTORY FILE: whoever packs it, and whenever.
reproducible_tar() {
  tar --format=gnu --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$1" -cf "$2" .
}

# layout_archive LAYOUT DESCRIPTOR NAME FILE: the archive of an OCI layout in which one image, or index of images, has that name.
layout_archive() {
  local layout=$1 descriptor=$2 name=$3 file=$4
  jq -nc --argjson descriptor "$descriptor" --arg name "$name" \
    '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [$descriptor + {annotations:
      {"io.containerd.image.name": $name, "org.opencontainers.image.ref.name": ($name | split(":") | last)}}]}' >"$layout/index.json"
  echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
  reproducible_tar "$layout" "$file"
}

# image_archive FILE NAME PROGRAM [ENTRYPOINT_ARGUMENT...]: of this machine's architecture, for a cluster that is here.
image_archive() {
  local archive=$1 name=$2 layout descriptor
  shift 2
  layout=$(mktemp -d)
  mkdir -p "$layout/blobs/sha256"
  descriptor=$(image_manifest "$layout" "$(image_architecture "$(uname -m)")" '' '' "$@")
  layout_archive "$layout" "$descriptor" "$name" "$archive"
  rm -r "$layout"
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
